//! Locks that keep the plans of accounts as they are. Accounts share the locks of 64 ranges: however many accounts a
//! flush has, it takes few locks, and a change of plan waits for, and holds up, the flushes of one range.

use sqlx::PgConnection;

/// Waits for no lock for long until the transaction ends.
#[tracing::instrument(name = "db.plan_locks.wait", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn wait_briefly(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("set local lock_timeout = '250ms'").execute(connection).await?;
    Ok(())
}

/// Keeps changes of these accounts' plans out until the transaction ends. What a later statement reads of them is
/// true until then; what an earlier one read need not be.
#[tracing::instrument(name = "db.plan_locks.hold", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn hold_shared(connection: &mut PgConnection, eco_ids: &[&str]) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock_shared(hashtext('nexus_plan_range'), range)
         from (select distinct nexus_plan_range(eco_id) as range from unnest($1::text[]) as eco_id order by 1) as ranges",
        eco_ids as &[&str],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The same without waiting: returns those of the accounts whose plans are being changed, in whose range that is; of
/// them nothing is held.
#[tracing::instrument(name = "db.plan_locks.hold", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_hold_shared(connection: &mut PgConnection, eco_ids: &[&str]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"with ranges as materialized (
               select range, pg_try_advisory_xact_lock_shared(hashtext('nexus_plan_range'), range) as held
               from (select distinct nexus_plan_range(eco_id) as range from unnest($1::text[]) as eco_id) as r)
           select eco_id as "eco_id!" from unnest($1::text[]) as eco_id
           join ranges on range = nexus_plan_range(eco_id)
           where not held"#,
        eco_ids as &[&str],
    )
    .fetch_all(connection)
    .await
}
