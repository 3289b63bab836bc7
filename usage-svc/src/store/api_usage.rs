//! `eco_api_usage`, the raw log, and its partitions.

use std::collections::{HashMap, HashSet};

use nexus_core::{id::EcoId, route};
use sqlx::PgConnection;

use crate::domain::{
    admission::Row,
    delta::SEGMENT,
    event::{Identity, Payload},
};

/// Days of partitions behind today: late events reach 35 days back.
const DAYS_BEHIND: i32 = 36;
/// Days of partitions ahead of today.
const DAYS_AHEAD: i32 = 7;

/// Writes the rows, which are in the order of their identities; returns the identities that were new.
#[tracing::instrument(name = "db.eco_api_usage.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = rows.len()))]
pub async fn insert_new(connection: &mut PgConnection, rows: &[Row<'_>]) -> sqlx::Result<HashSet<Identity>> {
    let payloads = || rows.iter().map(|r| &r.event.payload);
    let routes: Vec<_> = payloads()
        .map(|p| Some(route::template(&p.endpoint)).filter(|route| *route != p.endpoint.as_str()))
        .collect();
    // A function scan yields the rows in the arrays' order, so that flushes of the same events take them
    // in one order.
    let new = sqlx::query!(
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count,
             endpoint, route, method, status_code, response_time_ms, api_key_id, admission_id, test_mode, late)
         select u.event_id, u.eco_id, u.event_day, u.event_time, u.period_start, $6, u.units_count,
             u.endpoint, u.route, u.method, u.status_code, u.response_time_ms, u.api_key_id, u.admission_id,
             u.test_mode, u.late
         from unnest($1::uuid[], $2::text[], $3::date[], $4::timestamptz[], $5::timestamptz[], $7::bigint[],
                     $8::text[], $9::text[], $10::text[], $11::smallint[], $12::int[], $13::text[], $14::uuid[],
                     $15::bool[], $16::bool[])
             as u (event_id, eco_id, event_day, event_time, period_start, units_count, endpoint, route, method,
                   status_code, response_time_ms, api_key_id, admission_id, test_mode, late)
         on conflict do nothing
         returning event_id, eco_id, event_day",
        &rows.iter().map(|r| r.event.event_id).collect::<Vec<_>>(),
        &rows.iter().map(|r| r.event.eco_id.as_str()).collect::<Vec<_>>() as &[&str],
        &rows.iter().map(|r| r.event.day()).collect::<Vec<_>>(),
        &payloads().map(|p| p.event_time).collect::<Vec<_>>(),
        &rows.iter().map(|r| r.placement.period_start).collect::<Vec<_>>(),
        SEGMENT,
        &payloads().map(|p| p.units_count).collect::<Vec<_>>(),
        &payloads().map(|p| p.endpoint.as_str()).collect::<Vec<_>>() as &[&str],
        &routes.iter().map(Option::as_deref).collect::<Vec<_>>() as &[Option<&str>],
        &payloads().map(|p| p.method.as_str()).collect::<Vec<_>>() as &[&str],
        &payloads().map(|p| p.status_code).collect::<Vec<_>>(),
        &payloads().map(|p| p.response_time_ms).collect::<Vec<_>>(),
        &payloads().map(|p| p.api_key_id.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &payloads().map(|p| p.admission).collect::<Vec<_>>() as &[Option<uuid::Uuid>],
        &rows.iter().map(|r| r.placement.test_mode).collect::<Vec<_>>(),
        &rows.iter().map(|r| r.placement.late).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    new.into_iter().map(|r| Ok((r.event_id, eco_id(&r.eco_id)?, r.event_day))).collect()
}

/// What is stored under these identities.
#[tracing::instrument(name = "db.eco_api_usage.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn stored(
    connection: &mut PgConnection,
    identities: &[Identity],
) -> sqlx::Result<HashMap<Identity, Payload>> {
    let rows = sqlx::query!(
        r#"select u.event_id, u.eco_id, u.event_day, u.event_time, u.units_count, u.endpoint, u.method,
                  u.status_code, u.response_time_ms, u.api_key_id, u.admission_id
           from unnest($1::uuid[], $2::text[], $3::date[]) as k (event_id, eco_id, event_day)
           join eco_api_usage u using (event_id, eco_id, event_day)"#,
        &identities.iter().map(|i| i.0).collect::<Vec<_>>(),
        &identities.iter().map(|i| i.1.as_str()).collect::<Vec<_>>() as &[&str],
        &identities.iter().map(|i| i.2).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|r| {
            let payload = Payload {
                event_time: r.event_time,
                endpoint: r.endpoint,
                method: r.method,
                status_code: r.status_code,
                response_time_ms: r.response_time_ms,
                units_count: r.units_count,
                api_key_id: r.api_key_id,
                admission: r.admission_id,
            };
            Ok(((r.event_id, eco_id(&r.eco_id)?, r.event_day), payload))
        })
        .collect()
}

/// Whether a write failed because its day has no partition.
pub fn lacks_partition(error: &sqlx::Error) -> bool {
    // No constraint of ours is named: it is the partition key that nothing takes.
    matches!(error, sqlx::Error::Database(e) if e.code().as_deref() == Some("23514") && e.constraint().is_none())
}

/// Makes the partitions that events of today's reach need; returns how many it made.
#[tracing::instrument(name = "db.eco_api_usage.ensure_partitions", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn ensure_partitions(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        r#"select nexus_ensure_usage_partitions((now() at time zone 'UTC')::date - $1::int,
                                                (now() at time zone 'UTC')::date + $2::int) as "made!""#,
        DAYS_BEHIND,
        DAYS_AHEAD,
    )
    .fetch_one(connection)
    .await
}

/// Drops the partitions of the days before the last `retention_days`; returns how many.
#[tracing::instrument(name = "db.eco_api_usage.drop_partitions", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn drop_partitions(connection: &mut PgConnection, retention_days: i32) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        r#"select nexus_drop_usage_partitions((now() at time zone 'UTC')::date - $1::int) as "dropped!""#,
        retention_days,
    )
    .fetch_one(connection)
    .await
}

fn eco_id(text: &str) -> sqlx::Result<EcoId> {
    EcoId::parse(text).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}
