//! `eco_stripe_events`: events of Stripe's, as jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::stripe_event::{NewEvent, Outcome};

/// An event to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Stripe's id of the event.
    pub event_id: String,
    /// Its type, in Stripe's words.
    pub kind: String,
    /// Stripe's id of what it is about.
    pub object_id: String,
    /// Stripe's id of the subscription that this belongs to, as far as the event says so.
    pub subscription_id: Option<String>,
    /// How often it failed.
    pub attempts: i32,
}

/// What waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Events to be applied.
    pub waiting: i64,
    /// Events that wait until Stripe sends them again.
    pub parked: i64,
    /// Age of the oldest to be applied.
    pub oldest_seconds: i64,
}

/// Database time.
#[tracing::instrument(name = "db.now", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn now(db: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(db).await
}

/// Keeps an event, to be applied unless nothing is done about its type. False: it is kept already.
#[tracing::instrument(name = "db.eco_stripe_events.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, event: &NewEvent, is_handled: bool) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_stripe_events
             (stripe_event_id, type, object_id, subscription_id, created_time, payload, processed_time, outcome)
         values ($1, $2, $3, $4, $5, $6, case when $7::text is not null then now() end, $7)
         on conflict (stripe_event_id) do nothing",
        event.event_id,
        event.kind,
        event.object_id,
        event.subscription_id,
        event.created,
        event.payload,
        (!is_handled).then_some(Outcome::NotHandled.as_str()),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Has a subscription looked at as if an event of it had come: one may have been lost. `cause` is why; what has one cause
/// is looked at once.
#[tracing::instrument(name = "db.eco_stripe_events.look_at", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn look_at(db: &mut PgConnection, subscription_id: &str, cause: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_stripe_events (stripe_event_id, type, object_id, subscription_id, payload)
         values ('look-' || $2, 'customer.subscription.updated', $1, $1, jsonb_build_object('cause', $2))
         on conflict (stripe_event_id) do nothing",
        subscription_id,
        cause,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has an event that is not processed tried at once, a parked one too. One that is being applied right now is left
/// to that.
#[tracing::instrument(name = "db.eco_stripe_events.hasten", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn hasten(db: &mut PgConnection, event_id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_events set due_time = now(), parked_time = null
         where stripe_event_id = (select stripe_event_id from eco_stripe_events
                                  where stripe_event_id = $1 and processed_time is null
                                  for update skip locked)",
        event_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the event that has been due longest, until the transaction ends: nobody else gets it. Those of subscriptions
/// that are `busy` are left. The transaction may stand idle for so long.
#[tracing::instrument(name = "db.eco_stripe_events.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(db: &mut PgConnection, busy: &[String], idle: Duration) -> sqlx::Result<Option<Job>> {
    let idle = format!("{}ms", idle.as_millis());
    sqlx::query_scalar!("select set_config('idle_in_transaction_session_timeout', $1, true)", idle)
        .fetch_one(&mut *db)
        .await?;
    sqlx::query_as!(
        Job,
        r#"select stripe_event_id as event_id, type as kind, object_id as "object_id!", subscription_id, attempts
           from eco_stripe_events
           where processed_time is null and parked_time is null and due_time <= now() and object_id is not null
             and (subscription_id is null or subscription_id <> all ($1))
           order by due_time
           limit 1
           for update skip locked"#,
        busy,
    )
    .fetch_optional(db)
    .await
}

/// An event is applied.
#[tracing::instrument(name = "db.eco_stripe_events.finish", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish(db: &mut PgConnection, event_id: &str, outcome: Outcome) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_events set processed_time = clock_timestamp(), outcome = $2, failure = null
         where stripe_event_id = $1",
        event_id,
        outcome.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Has the last event of a subscription applied once more; false: there is none, or it waits.
#[tracing::instrument(name = "db.eco_stripe_events.apply_again", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn apply_again(db: &mut PgConnection, subscription_id: &str) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_stripe_events set processed_time = null, outcome = null, attempts = 0, due_time = clock_timestamp()
         where stripe_event_id = (select stripe_event_id from eco_stripe_events
                                  where subscription_id = $1 and processed_time is not null
                                  order by received_time desc limit 1)",
        subscription_id,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An event could not be applied: it is due again after a while, or parked where that is `None`.
#[tracing::instrument(name = "db.eco_stripe_events.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(
    db: &mut PgConnection,
    event_id: &str,
    failure: &str,
    again_in: Option<Duration>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_events
         set attempts = attempts + 1, failure = $2,
             due_time = clock_timestamp() + make_interval(secs => coalesce($3::float8, 0)),
             parked_time = case when $3::float8 is null then clock_timestamp() end
         where stripe_event_id = $1",
        event_id,
        failure,
        again_in.map(|wait| wait.as_secs_f64()),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Another is at work on what an event is about: it is due a little later, which is no failure.
#[tracing::instrument(name = "db.eco_stripe_events.put_off", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn put_off(db: &mut PgConnection, event_id: &str, by: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_stripe_events set due_time = clock_timestamp() + make_interval(secs => $2)
         where stripe_event_id = $1",
        event_id,
        by.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What waits.
#[tracing::instrument(name = "db.eco_stripe_events.backlog", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn backlog(db: &mut PgConnection) -> sqlx::Result<Backlog> {
    sqlx::query_as!(
        Backlog,
        r#"select w.waiting as "waiting!", p.parked as "parked!", w.oldest as "oldest_seconds!"
           from (select count(*) as waiting,
                        coalesce(extract(epoch from now() - min(received_time)), 0)::bigint as oldest
                 from eco_stripe_events where processed_time is null and parked_time is null) w
           cross join (select count(*) as parked
                       from eco_stripe_events where processed_time is null and parked_time is not null) p"#
    )
    .fetch_one(db)
    .await
}
