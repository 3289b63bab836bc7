//! `eco_quota_holders`: the replicas that hold units, and when each last gave a sign of life.

use sqlx::PgConnection;
use uuid::Uuid;

/// Gives a sign of life.
#[tracing::instrument(name = "db.eco_quota_holders.upsert", level = "debug", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn beat(connection: &mut PgConnection, holder_id: Uuid, name: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_quota_holders (holder_id, name) values ($1, $2)
         on conflict (holder_id) do update set heartbeat_time = now()",
        holder_id,
        name,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Says goodbye: all that it held is settled.
#[tracing::instrument(name = "db.eco_quota_holders.delete", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn leave(connection: &mut PgConnection, holder_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("delete from eco_quota_holders where holder_id = $1", holder_id).execute(connection).await?;
    Ok(())
}

/// Deletes the holders that have been gone for two days: without a row a holder is gone as well. Returns how
/// many.
#[tracing::instrument(name = "db.eco_quota_holders.delete", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete_gone(connection: &mut PgConnection) -> sqlx::Result<u64> {
    let done = sqlx::query!("delete from eco_quota_holders where heartbeat_time < now() - interval '2 days'")
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}
