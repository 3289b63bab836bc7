//! Locks that keep the plans of accounts as they are. Accounts share the locks of 64 ranges: however many accounts a
//! flush has, it takes few locks, and a change of plan waits for, and holds up, the flushes of one range.

use sqlx::PgConnection;

/// Keeps changes of these accounts' plans out until the transaction ends. What a later statement reads of them is
/// true until then; what an earlier one read need not be. Waits for none: returns those of the accounts in whose range
/// a plan is being changed, or is to be next, with the range; of them nothing is held.
#[tracing::instrument(name = "db.plan_locks.hold", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_hold_shared(
    connection: &mut PgConnection,
    eco_ids: &[&str],
) -> sqlx::Result<Vec<(String, i32)>> {
    let rows = sqlx::query!(
        r#"with ranges as materialized (
               select range, pg_try_advisory_xact_lock_shared(hashtext('nexus_plan_range'), range) as held
               from (select distinct nexus_plan_range(eco_id) as range from unnest($1::text[]) as eco_id) as r)
           select eco_id as "eco_id!", range as "range!" from unnest($1::text[]) as eco_id
           join ranges on range = nexus_plan_range(eco_id)
           where not held"#,
        eco_ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.eco_id, row.range)).collect())
}

/// Keeps changes of plans of this range out until the transaction ends. Waits in turn with those who change one.
#[tracing::instrument(name = "db.plan_locks.wait", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn hold_shared(connection: &mut PgConnection, range: i32) -> sqlx::Result<()> {
    sqlx::query!("select pg_advisory_xact_lock_shared(hashtext('nexus_plan_range'), $1)", range)
        .execute(connection)
        .await?;
    Ok(())
}
