//! `eco_webhook_messages`: what customers are told, as the bytes that are sent.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::id::EcoId;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::webhook::event::Message;

/// Database time.
#[tracing::instrument(name = "db.now", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn now(db: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(db).await
}

/// Writes messages; one that is there stays as it is.
#[tracing::instrument(name = "db.eco_webhook_messages.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, messages: &[Message]) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = messages.iter().map(|message| message.message_id).collect();
    let eco_ids: Vec<&str> = messages.iter().map(|message| message.eco_id.as_str()).collect();
    let types: Vec<&str> = messages.iter().map(|message| message.event_type.as_str()).collect();
    let payloads: Vec<&str> = messages.iter().map(|message| message.payload.as_str()).collect();
    sqlx::query!(
        "insert into eco_webhook_messages (message_id, eco_id, event_type, payload)
         select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
         on conflict do nothing",
        &ids,
        &eco_ids as &[&str],
        &types as &[&str],
        &payloads as &[&str],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Tests that an account has sent within a day.
#[tracing::instrument(name = "db.eco_webhook_messages.count_tests", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn count_tests(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from eco_webhook_messages
           where eco_id = $1 and event_type = 'webhook.test' and created_time > now() - interval '1 day'"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await
}

/// Deletes up to `limit` messages that are older, with their deliveries; returns how many.
#[tracing::instrument(name = "db.eco_webhook_messages.delete_old", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete_old(db: &mut PgConnection, keep: TimeDelta, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "delete from eco_webhook_messages
         where message_id in (select message_id from eco_webhook_messages where created_time < now() - $1::interval
                              order by created_time limit $2 for update skip locked)",
        keep as _,
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
