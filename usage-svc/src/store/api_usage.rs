//! `eco_api_usage`, the raw log, and its partitions.

use std::collections::{HashMap, HashSet};

use chrono::NaiveDate;
use nexus_core::id::EcoId;
use sqlx::PgConnection;
use uuid::Uuid;

use super::copy_binary::Encoder;
use crate::domain::{
    admission::Row,
    event::{Identity, Payload},
};

/// Days of partitions behind today: late events reach 35 days back.
const DAYS_BEHIND: i32 = 36;
/// Days of partitions ahead of today.
const DAYS_AHEAD: i32 = 7;

/// Columns of a row, in the order in which [`put`] writes them.
macro_rules! columns {
    () => {
        "event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint, route, method, \
         status_code, response_time_ms, api_key_id, admission_id, test_mode, late"
    };
}
const COLUMN_COUNT: i16 = 16;
const COPY: &str = concat!("copy eco_api_usage (", columns!(), ") from stdin (format binary)");
const COPY_TO_STAGE: &str =
    concat!("copy pg_temp.eco_usage_stage (", columns!(), ") from stdin (format binary)");
/// The order is that of [`insert`], so that flushes of the same events take them in one order.
const TAKE_FROM_STAGE: &str = concat!(
    "insert into eco_api_usage (",
    columns!(),
    ") select ",
    columns!(),
    " from pg_temp.eco_usage_stage
     order by event_day, event_id, eco_id collate \"C\" on conflict do nothing
     returning event_id, eco_id, event_day"
);
/// Up to so many rows go in one message. A COPY is several, and over TCP the last of them may wait until the server
/// has acknowledged the one before, which it puts off by up to 40 ms (RFC 896 with RFC 1122, 4.2.3.2): nothing to
/// thousands of rows, much to one.
const FEW: usize = 1_000;
/// Encoded rows are sent in pieces of about so many bytes: the server works on one while the next is encoded.
const PIECE_BYTES: usize = 128 * 1024;

/// Waits for no row for long until the transaction ends.
#[tracing::instrument(name = "db.eco_api_usage.wait", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn wait_briefly(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("set local lock_timeout = '250ms'").execute(connection).await?;
    Ok(())
}

/// Writes rows, which are in the order of day, id and account; PostgreSQL puts each into its day's partition. Fails
/// with a unique violation, and writes nothing, where one of them is stored already.
#[tracing::instrument(name = "db.eco_api_usage.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = rows.len()))]
pub async fn insert(connection: &mut PgConnection, rows: &[Row<'_>]) -> sqlx::Result<()> {
    if rows.len() <= FEW { insert_few(connection, rows).await } else { send(connection, COPY, rows).await }
}

/// Rows as arrays in one message, so that it costs one round trip.
async fn insert_few(connection: &mut PgConnection, rows: &[Row<'_>]) -> sqlx::Result<()> {
    fn each<'a, T>(rows: &'a [Row<'a>], value: impl Fn(&'a Row<'a>) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    sqlx::query!(
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count,
                                    endpoint, route, method, status_code, response_time_ms, api_key_id,
                                    admission_id, test_mode, late)
         select * from unnest($1::uuid[], $2::text[], $3::date[], $4::timestamptz[], $5::timestamptz[], $6::int[],
                              $7::bigint[], $8::text[], $9::text[], $10::text[], $11::smallint[], $12::int[],
                              $13::text[], $14::uuid[], $15::boolean[], $16::boolean[])",
        &each(rows, |row| row.event.event_id),
        &each(rows, |row| row.event.eco_id.as_str()) as &[&str],
        &each(rows, |row| row.event.day()),
        &each(rows, |row| row.event.payload.event_time),
        &each(rows, |row| row.placement.period_start),
        &each(rows, |row| row.placement.segment),
        &each(rows, |row| row.event.payload.units_count),
        &each(rows, |row| row.event.payload.endpoint.as_str()) as &[&str],
        &each(rows, own_route) as &[Option<&str>],
        &each(rows, |row| row.event.payload.method.as_str()) as &[&str],
        &each(rows, |row| row.event.payload.status_code),
        &each(rows, |row| row.event.payload.response_time_ms),
        &each(rows, |row| row.event.payload.api_key_id.as_deref()) as &[Option<&str>],
        &each(rows, |row| row.event.payload.admission) as &[Option<Uuid>],
        &each(rows, |row| row.placement.test_mode),
        &each(rows, |row| row.placement.late),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A row's route, where it is not its endpoint anyway.
fn own_route<'a>(row: &'a Row<'a>) -> Option<&'a str> {
    Some(row.route.as_ref()).filter(|route| *route != row.event.payload.endpoint)
}

/// Writes those of the rows that are new, through a temporary table of the connection; returns the identities
/// that were new. Slower than [`insert`], but some of the rows may be stored already.
#[tracing::instrument(name = "db.eco_api_usage.insert_new", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = rows.len()))]
pub async fn insert_new(connection: &mut PgConnection, rows: &[Row<'_>]) -> sqlx::Result<HashSet<Identity>> {
    // Not checked at compile time: the table exists only here.
    let staged =
        sqlx::query_scalar!(r#"select to_regclass('pg_temp.eco_usage_stage') is not null as "staged!""#)
            .fetch_one(&mut *connection)
            .await?;
    if !staged {
        sqlx::query("create temporary table eco_usage_stage (like eco_api_usage) on commit delete rows")
            .execute(&mut *connection)
            .await?;
    }
    send(connection, COPY_TO_STAGE, rows).await?;
    let new: Vec<(Uuid, String, NaiveDate)> = sqlx::query_as(TAKE_FROM_STAGE).fetch_all(connection).await?;
    new.into_iter().map(|(id, account, day)| Ok((id, eco_id(&account)?, day))).collect()
}

async fn send(connection: &mut PgConnection, statement: &str, rows: &[Row<'_>]) -> sqlx::Result<()> {
    let mut copy = connection.copy_in_raw(statement).await?;
    let mut encoder = Encoder::new(COLUMN_COUNT);
    for row in rows {
        put(&mut encoder, row);
        if encoder.bytes().len() >= PIECE_BYTES {
            copy.send(encoder.bytes()).await?;
            encoder.clear();
        }
    }
    encoder.end();
    copy.send(encoder.bytes()).await?;
    copy.finish().await?;
    Ok(())
}

fn put(encoder: &mut Encoder, row: &Row<'_>) {
    let payload = &row.event.payload;
    encoder
        .row()
        .uuid(Some(row.event.event_id))
        .text(Some(row.event.eco_id.as_str()))
        .date(row.event.day())
        .timestamptz(payload.event_time)
        .timestamptz(row.placement.period_start)
        .int4(row.placement.segment)
        .int8(payload.units_count)
        .text(Some(&payload.endpoint))
        .text(own_route(row))
        .text(Some(&payload.method))
        .int2(payload.status_code)
        .int4(payload.response_time_ms)
        .text(payload.api_key_id.as_deref())
        .uuid(payload.admission)
        .bool(row.placement.test_mode)
        .bool(row.placement.late);
}

/// Whether [`insert`] met a row that is stored already.
pub fn is_stored_already(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.is_unique_violation())
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

/// The first day whose raw log is whole.
#[tracing::instrument(name = "db.eco_usage_retention.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn retained_from(connection: &mut PgConnection) -> sqlx::Result<NaiveDate> {
    sqlx::query_scalar!("select raw_complete_from from eco_usage_retention").fetch_one(connection).await
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
