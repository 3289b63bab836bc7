//! `eco_quota_leases`: grants of units, what was booked against them and what came back. What changes together
//! with `eco_quota_usage` does so in functions of the database: each is one statement and one round trip.

use std::collections::{BTreeMap, HashMap};

use nexus_core::{id::EcoId, period::Period, quota::Limit};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::{
    admission::Lease,
    lease::{Claim, Grant, Return},
};

/// Grants units under a new lease of the holder, by the account's terms of an epoch; see
/// `nexus_grant_quota`.
#[tracing::instrument(name = "db.eco_quota_leases.grant", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn grant(
    connection: &mut PgConnection,
    (lease_id, holder_id): (Uuid, Uuid),
    eco_id: &EcoId,
    period: Period,
    (epoch, limit): (i32, Limit),
    claim: Claim,
) -> sqlx::Result<Grant> {
    let row = sqlx::query!(
        r#"select granted, coalesce(consumed, 0) as "consumed!", outstanding as "outstanding!",
                  recallable as "recallable!"
           from nexus_grant_quota($1::int, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#,
        epoch,
        lease_id,
        holder_id,
        eco_id.as_str(),
        period.start,
        period.end,
        limit,
        claim.least,
        claim.need,
        claim.want,
    )
    .fetch_one(connection)
    .await?;
    Ok(answer(row.granted, row.consumed, row.outstanding, row.recallable))
}

fn answer(granted: Option<i64>, consumed: i64, outstanding: bool, recallable: bool) -> Grant {
    match granted {
        None => Grant::OtherTerms,
        Some(0) => Grant::Short { consumed, outstanding, recallable },
        Some(units) => Grant::Granted { units, consumed },
    }
}

/// Grants units under a new lease of a client of the holder, by the same; see `nexus_lend_quota`.
#[tracing::instrument(name = "db.eco_quota_leases.lend", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lend(
    connection: &mut PgConnection,
    (lease_id, client_id, holder_id): (Uuid, Uuid, Uuid),
    eco_id: &EcoId,
    period: Period,
    (epoch, limit): (i32, Limit),
    want: i64,
) -> sqlx::Result<Grant> {
    let row = sqlx::query!(
        r#"select granted, coalesce(consumed, 0) as "consumed!", outstanding as "outstanding!",
                  recallable as "recallable!"
           from nexus_lend_quota($1, $2, $3, $4, $5, $6, $7, $8, $9)"#,
        epoch,
        lease_id,
        client_id,
        holder_id,
        eco_id.as_str(),
        period.start,
        period.end,
        limit,
        want,
    )
    .fetch_one(connection)
    .await?;
    Ok(answer(row.granted, row.consumed, row.outstanding, row.recallable))
}

/// Takes back what a client has not used of a lease; the units that came back. `None`: it is not this client's; see
/// `nexus_settle_lent_quota`.
#[tracing::instrument(name = "db.eco_quota_leases.settle_lent", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn settle_lent(
    connection: &mut PgConnection,
    (lease_id, client_id): (Uuid, Uuid),
    eco_id: &EcoId,
    used: i64,
    answer: bool,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "select nexus_settle_lent_quota($1, $2, $3, $4, $5)",
        lease_id,
        client_id,
        eco_id.as_str(),
        used,
        answer,
    )
    .fetch_one(connection)
    .await
}

/// Leaves leases to the client, which is not heard any more, as far as they are not settled.
#[tracing::instrument(name = "db.eco_quota_leases.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn leave_to_client(connection: &mut PgConnection, lease_ids: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_quota_leases set holder_id = client_id
         where lease_id = any($1) and settled_time is null and client_id is not null",
        lease_ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes back what the holder has not spent, each lease once; see `nexus_settle_leases`.
#[tracing::instrument(name = "db.eco_quota_leases.settle", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = returns.len()))]
pub async fn settle(connection: &mut PgConnection, returns: &[Return], answer: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "select from nexus_settle_leases($1, $2, $3)",
        &returns.iter().map(|r| r.lease_id).collect::<Vec<_>>(),
        &returns.iter().map(|r| r.unspent).collect::<Vec<_>>(),
        answer,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes sure that a grant whose answer was lost gives nothing; see `nexus_disown_lease`.
#[tracing::instrument(name = "db.eco_quota_leases.disown", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn disown(
    connection: &mut PgConnection,
    lease_id: Uuid,
    eco_id: &EcoId,
    period: Period,
) -> sqlx::Result<()> {
    sqlx::query!(
        "select nexus_disown_lease($1, $2, $3, $4)",
        lease_id,
        eco_id.as_str(),
        period.start,
        period.end,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Units of the period that are lost with their holder, for all that is known: those of leases that nobody
/// settled, whose holder gives no signs of life, and that no event was booked against.
#[tracing::instrument(name = "db.eco_quota_leases.forfeited", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn forfeited(connection: &mut PgConnection, eco_id: &EcoId, period: Period) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select coalesce(sum(l.granted_units - l.booked_units), 0)::bigint as "units!"
           from eco_quota_leases l left join eco_quota_holders h using (holder_id)
           where l.eco_id = $1 and l.period_start = $2 and l.settled_time is null and l.holder_id is not null
             and not nexus_holder_is_heard(h.heartbeat_time)"#,
        eco_id.as_str(),
        period.start,
    )
    .fetch_one(connection)
    .await
}

/// The leases that exist of these, locked in one order until the transaction ends.
#[tracing::instrument(name = "db.eco_quota_leases.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock(connection: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, Lease>> {
    let rows = sqlx::query!(
        r#"select lease_id, eco_id, period_start, period_end,
                  granted_units - returned_units - booked_units as "unbooked!"
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

/// Deletes up to `limit` of the leases that nothing books against any more: those of periods that ended more than two
/// days ago, and those that are settled and wholly booked. Returns how many.
#[tracing::instrument(name = "db.eco_quota_leases.delete", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete_settled(connection: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    // A lease that a flush or a settlement has locked waits for the next round, rather than the round for it. The others
    // are locked here, so that their places in the table stay theirs.
    let done = sqlx::query!(
        "delete from eco_quota_leases where ctid = any (array(
             select ctid from eco_quota_leases
             where period_end < now() - interval '2 days'
                or settled_time < now() - interval '1 hour' and granted_units = returned_units + booked_units
             limit $1 for update skip locked))",
        limit,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
