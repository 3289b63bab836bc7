//! `eco_quota_leases`: grants of units, and what was booked against them.

use std::collections::{BTreeMap, HashMap};

use nexus_core::{id::EcoId, period::Period};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::admission::Lease;

/// Notes a grant.
#[tracing::instrument(name = "db.eco_quota_leases.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    connection: &mut PgConnection,
    lease_id: Uuid,
    eco_id: &EcoId,
    period: Period,
    units: i64,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_quota_leases (lease_id, eco_id, period_start, period_end, granted_units)
         values ($1, $2, $3, $4, $5)",
        lease_id,
        eco_id.as_str(),
        period.start,
        period.end,
        units,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The leases that exist of these, locked in one order until the transaction ends.
#[tracing::instrument(name = "db.eco_quota_leases.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock(connection: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, Lease>> {
    let rows = sqlx::query!(
        r#"select lease_id, eco_id, period_start, period_end, granted_units - booked_units as "unbooked!"
           from eco_quota_leases where lease_id = any($1) order by lease_id for update"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|r| {
            let period = Period { start: r.period_start, end: r.period_end };
            (r.lease_id, Lease { eco_id: r.eco_id, period, unbooked: r.unbooked })
        })
        .collect())
}

/// Books recorded units against leases that are locked.
#[tracing::instrument(name = "db.eco_quota_leases.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn book(connection: &mut PgConnection, units: &BTreeMap<Uuid, i64>) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_quota_leases l set booked_units = l.booked_units + u.units
         from unnest($1::uuid[], $2::bigint[]) as u (lease_id, units) where l.lease_id = u.lease_id",
        &units.keys().copied().collect::<Vec<_>>(),
        &units.values().copied().collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the leases of periods that ended more than two days ago: settled, so nothing books against
/// them. Returns how many.
#[tracing::instrument(name = "db.eco_quota_leases.delete", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete_settled(connection: &mut PgConnection) -> sqlx::Result<u64> {
    let done = sqlx::query!("delete from eco_quota_leases where period_end < now() - interval '2 days'")
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}
