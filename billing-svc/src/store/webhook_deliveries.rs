//! `eco_webhook_deliveries` with `eco_webhook_attempts`, their log.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown_word;
use crate::domain::webhook::{
    ACCOUNT_AT_ONCE, ATTEMPTS_KEPT,
    delivery::{Attempt, Delivery, DeliveryStatus},
    event::Message,
};

/// A delivery that is this process's to try, until the lease ends.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The endpoint.
    pub endpoint_id: Uuid,
    /// The message.
    pub message_id: Uuid,
    /// Number of this attempt; who has a later one has the delivery.
    pub attempt: i32,
    /// Attempts since it was begun or begun again, this one included.
    pub tries: i32,
    /// Where to.
    pub url: String,
    /// What.
    pub payload: String,
    /// Database time.
    pub now: DateTime<Utc>,
}

/// Begins the deliveries of messages to the endpoints of their accounts that are enabled and want their type. None of
/// these is disabled or deleted before the transaction ends.
#[tracing::instrument(name = "db.eco_webhook_deliveries.fan_out", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fan_out(db: &mut PgConnection, messages: &[Message]) -> sqlx::Result<()> {
    let messages: Vec<Uuid> = messages.iter().map(|message| message.message_id).collect();
    sqlx::query!(
        "insert into eco_webhook_deliveries (endpoint_id, message_id)
         select e.endpoint_id, m.message_id
         from eco_webhook_messages m
         join eco_webhook_endpoints e on e.eco_id = m.eco_id
         where m.message_id = any ($1) and e.disabled_reason is null
           and (cardinality(e.event_types) = 0 or m.event_type = any (e.event_types))
         for share of e
         on conflict do nothing",
        &messages,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Begins the delivery of a message to one endpoint.
#[tracing::instrument(name = "db.eco_webhook_deliveries.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    message_id: Uuid,
    request_id: Option<Uuid>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_webhook_deliveries (endpoint_id, message_id, request_id) values ($1, $2, $3)",
        endpoint_id,
        message_id,
        request_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes up to `limit` deliveries that are due and notes that an attempt begins. Of an endpoint one at a time, the
/// one that is due the longest, and of an account a few: who hangs holds up the own alone. For the holder of the lock
/// of [`super::lease::try_webhooks`]. Only the first that are due are looked at; those that may not be taken now are
/// passed over before, so that the rest has its turn.
#[tracing::instrument(name = "db.eco_webhook_deliveries.claim", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn claim(db: &mut PgConnection, lease: Duration, limit: i64) -> sqlx::Result<Vec<Claimed>> {
    sqlx::query_as!(
        Claimed,
        r#"with busy as (
               select e.endpoint_id, e.eco_id
               from eco_webhook_deliveries o
               join eco_webhook_endpoints e on e.endpoint_id = o.endpoint_id
               where o.lease_end_time > now()
           ), accounts as (
               select b.eco_id, count(*) as at_work from busy b group by b.eco_id
           ), first as (
               select d.endpoint_id, d.message_id, d.due_time
               from eco_webhook_deliveries d
               where d.status = 'pending' and not d.held and d.due_time <= now()
                 and d.endpoint_id <> all (array(
                     select b.endpoint_id from busy b
                     union
                     select e.endpoint_id from accounts a join eco_webhook_endpoints e on e.eco_id = a.eco_id
                     where a.at_work >= $4::bigint))
               order by d.due_time, d.message_id
               limit $2::bigint * 8
           ), each as (
               select distinct on (f.endpoint_id) f.endpoint_id, f.message_id, f.due_time
               from first f
               order by f.endpoint_id, f.due_time, f.message_id
           ), placed as (
               select f.endpoint_id, f.message_id, f.due_time,
                      coalesce(a.at_work, 0)
                          + row_number() over (partition by e.eco_id order by f.due_time, f.message_id) as place
               from each f
               join eco_webhook_endpoints e on e.endpoint_id = f.endpoint_id
               left join accounts a on a.eco_id = e.eco_id
           ), due as (
               select d.endpoint_id, d.message_id
               from placed f
               join eco_webhook_deliveries d on d.endpoint_id = f.endpoint_id and d.message_id = f.message_id
               where f.place <= $4::bigint and d.status = 'pending' and not d.held
               order by f.due_time, f.message_id
               limit $2
               for update of d skip locked
           ), claimed as (
               update eco_webhook_deliveries d
               set attempts = d.attempts + 1, tries = d.tries + 1, lease_end_time = now() + $1::interval
               from due
               where d.endpoint_id = due.endpoint_id and d.message_id = due.message_id
               returning d.endpoint_id, d.message_id, d.attempts, d.tries
           ), noted as (
               insert into eco_webhook_attempts (endpoint_id, message_id, attempt)
               select c.endpoint_id, c.message_id, c.attempts from claimed c
           ), forgotten as (
               delete from eco_webhook_attempts a
               using claimed c
               where a.endpoint_id = c.endpoint_id and a.message_id = c.message_id and a.attempt <= c.attempts - $3::bigint
           )
           select c.endpoint_id as "endpoint_id!", c.message_id as "message_id!", c.attempts as "attempt!",
                  c.tries as "tries!", e.url, m.payload, now() as "now!"
           from claimed c
           join eco_webhook_endpoints e on e.endpoint_id = c.endpoint_id
           join eco_webhook_messages m on m.message_id = c.message_id"#,
        lease as _,
        limit,
        ATTEMPTS_KEPT,
        ACCOUNT_AT_ONCE,
    )
    .fetch_all(db)
    .await
}

/// Holds what waits for an endpoint, which was disabled.
#[tracing::instrument(name = "db.eco_webhook_deliveries.hold", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn hold(db: &mut PgConnection, endpoint_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_webhook_deliveries set held = true where endpoint_id = $1 and status = 'pending' and not held",
        endpoint_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has what was held for an endpoint sent now.
#[tracing::instrument(name = "db.eco_webhook_deliveries.release", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn release(db: &mut PgConnection, endpoint_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_webhook_deliveries set held = false, due_time = least(due_time, now())
         where endpoint_id = $1 and held",
        endpoint_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How long it took.
    pub duration_ms: i32,
    /// What the endpoint answered.
    pub http_status: Option<i32>,
    /// Why it failed, as a word; `None`: it succeeded.
    pub error: Option<String>,
}

/// Notes in the log how an attempt ended.
#[tracing::instrument(name = "db.eco_webhook_attempts.finish", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish_attempt(db: &mut PgConnection, claimed: &Claimed, outcome: &Outcome) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_webhook_attempts set duration_ms = $4, http_status = $5, error = $6
         where endpoint_id = $1 and message_id = $2 and attempt = $3",
        claimed.endpoint_id,
        claimed.message_id,
        claimed.attempt,
        outcome.duration_ms,
        outcome.http_status,
        outcome.error,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends a delivery, or has it tried again after a pause. Whoever lost it to another changes nothing.
#[tracing::instrument(name = "db.eco_webhook_deliveries.finish", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish(
    db: &mut PgConnection,
    claimed: &Claimed,
    status: DeliveryStatus,
    pause: Option<Duration>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_webhook_deliveries
         set status = $4, due_time = now() + coalesce($5::interval, interval '0'), lease_end_time = null,
             finished_time = case when $4 = 'pending' then null else now() end
         where endpoint_id = $1 and message_id = $2 and attempts = $3 and status = 'pending'",
        claimed.endpoint_id,
        claimed.message_id,
        claimed.attempt,
        status.as_str(),
        pause as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has a delivery tried again now, however it ended; one that is under way is left alone. False: there is none.
#[tracing::instrument(name = "db.eco_webhook_deliveries.redeliver", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn redeliver(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    message_id: Uuid,
    request_id: Option<Uuid>,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_webhook_deliveries d
         set status = 'pending', tries = 0, due_time = now(), finished_time = null,
             redelivery_id = coalesce($3, d.redelivery_id)
         where d.endpoint_id = $1 and d.message_id = $2
           and ($3::uuid is null or d.redelivery_id is distinct from $3)
           and (d.lease_end_time is null or d.lease_end_time <= now())",
        endpoint_id,
        message_id,
        request_id,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The delivery of a test that a request has begun.
#[tracing::instrument(name = "db.eco_webhook_deliveries.find_by_request", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find_by_request(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    request_id: Uuid,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "select message_id from eco_webhook_deliveries where endpoint_id = $1 and request_id = $2 limit 1",
        endpoint_id,
        request_id,
    )
    .fetch_optional(db)
    .await
}

struct Row {
    message_id: Uuid,
    endpoint_id: Uuid,
    event_type: String,
    payload: String,
    status: String,
    held: bool,
    due_time: DateTime<Utc>,
    created_time: DateTime<Utc>,
    finished_time: Option<DateTime<Utc>>,
}

/// The deliveries to an endpoint, newest first, after a place in that order, or one of them; with their logs.
#[tracing::instrument(name = "db.eco_webhook_deliveries.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    which: &Which,
    limit: i64,
) -> sqlx::Result<Vec<Delivery>> {
    let rows = sqlx::query_as!(
        Row,
        "select d.message_id, d.endpoint_id, m.event_type, m.payload, d.status, d.held, d.due_time, d.created_time,
                d.finished_time
         from eco_webhook_deliveries d
         join eco_webhook_messages m on m.message_id = d.message_id
         where d.endpoint_id = $1
           and ($2::uuid is null or d.message_id = $2)
           and ($3::text is null or d.status = $3)
           and ($4::timestamptz is null
                or (d.created_time <= $4 and (d.created_time < $4 or d.message_id > $5::uuid)))
         order by d.created_time desc, d.message_id
         limit $6",
        endpoint_id,
        which.message_id,
        which.status.map(DeliveryStatus::as_str),
        which.after.map(|(time, _)| time),
        which.after.map(|(_, message_id)| message_id),
        limit,
    )
    .fetch_all(&mut *db)
    .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.message_id).collect();
    let mut logs = logs(db, endpoint_id, &ids).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Delivery {
                event_type: row.event_type.parse().map_err(unknown_word)?,
                status: row.status.parse().map_err(unknown_word)?,
                attempts: logs.remove(&row.message_id).unwrap_or_default(),
                message_id: row.message_id,
                endpoint_id: row.endpoint_id,
                payload: row.payload,
                held: row.held,
                due_time: row.due_time,
                created_time: row.created_time,
                finished_time: row.finished_time,
            })
        })
        .collect()
}

/// Which deliveries are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which {
    /// This one alone.
    pub message_id: Option<Uuid>,
    /// Those that are so far.
    pub status: Option<DeliveryStatus>,
    /// Those after this one.
    pub after: Option<(DateTime<Utc>, Uuid)>,
}

/// The last attempts of each delivery, oldest first.
async fn logs(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    messages: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, Vec<Attempt>>> {
    let rows = sqlx::query!(
        "select a.message_id, a.attempt, a.started_time, a.duration_ms, a.http_status, a.error
         from unnest($2::uuid[]) as k (message_id)
         cross join lateral (
             select * from eco_webhook_attempts a
             where a.endpoint_id = $1 and a.message_id = k.message_id
             order by a.attempt desc limit $3) a
         order by a.message_id, a.attempt",
        endpoint_id,
        messages,
        ATTEMPTS_KEPT,
    )
    .fetch_all(db)
    .await?;
    let mut logs: HashMap<Uuid, Vec<Attempt>> = HashMap::new();
    for row in rows {
        logs.entry(row.message_id).or_default().push(Attempt {
            attempt: row.attempt,
            started_time: row.started_time,
            duration_ms: row.duration_ms,
            http_status: row.http_status,
            error: row.error,
        });
    }
    Ok(logs)
}
