//! `eco_ended_subscriptions`: subscriptions that have ended at Stripe, as jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use sqlx::PgConnection;

/// A subscription that is to be cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its row.
    pub subscription_id: i64,
    /// When it ended.
    pub ended_time: DateTime<Utc>,
}

/// An account that has such subscriptions, taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The account.
    pub eco_id: String,
    /// How often it failed.
    pub failures: i32,
}

/// Writes down that a subscription that the account has or had is over at Stripe. One that was cleared before it ended
/// is to be cleared again.
#[tracing::instrument(name = "db.eco_ended_subscriptions.note", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn note(
    db: &mut PgConnection,
    eco_id: &EcoId,
    stripe_id: &str,
    ended: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_ended_subscriptions as e (subscription_id, eco_id, ended_time)
         select subscription_id, eco_id, $3::timestamptz from eco_subscriptions
         where eco_id = $1 and stripe_subscription_id = $2
         on conflict (subscription_id) do update
         set ended_time = excluded.ended_time, due_time = now(), cleared_time = null
         where e.cleared_time < excluded.ended_time",
        eco_id.as_str(),
        stripe_id,
        ended,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes down the ends that nobody has: a server of an older version heard of them. What ended within a day may still go
/// on at Stripe: its account was closed, and it is being ended there.
#[tracing::instrument(name = "db.eco_ended_subscriptions.take_up", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take_up(db: &mut PgConnection) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "insert into eco_ended_subscriptions (subscription_id, eco_id, ended_time)
         select s.subscription_id, s.eco_id, s.ended_time from eco_subscriptions s
         where s.stripe_subscription_id is not null and s.ended_time < now() - interval '1 day'
           and s.status in ('canceled', 'incomplete_expired')
           and not exists (select from eco_ended_subscriptions e where e.subscription_id = s.subscription_id)
         on conflict do nothing",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Takes the account that has been due longest, for as long as is given; nobody else gets it meanwhile.
#[tracing::instrument(name = "db.eco_ended_subscriptions.take", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn take(db: &mut PgConnection, within: Duration) -> sqlx::Result<Option<Job>> {
    let due = sqlx::query_as!(
        Job,
        r#"with due as (
               select eco_id, failures from eco_ended_subscriptions
               where cleared_time is null and due_time <= now()
               order by due_time limit 1
               for update skip locked),
           own as (
               select e.subscription_id from eco_ended_subscriptions e join due on due.eco_id = e.eco_id
               where e.cleared_time is null
               for update of e skip locked),
           taken as (
               update eco_ended_subscriptions e set due_time = now() + make_interval(secs => $1)
               from own where e.subscription_id = own.subscription_id)
           select eco_id, failures from due"#,
        within.as_secs_f64(),
    )
    .fetch_optional(db)
    .await?;
    Ok(due)
}

/// Those of an account that are to be cleared.
#[tracing::instrument(name = "db.eco_ended_subscriptions.open", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn open(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Vec<Ended>> {
    sqlx::query_as!(
        Ended,
        "select subscription_id, ended_time from eco_ended_subscriptions
         where eco_id = $1 and cleared_time is null",
        eco_id,
    )
    .fetch_all(db)
    .await
}

/// Stripe's ids of all that an account had and that are over.
#[tracing::instrument(name = "db.eco_ended_subscriptions.stripe_ids", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn stripe_ids(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select s.stripe_subscription_id as "id!" from eco_ended_subscriptions e
           join eco_subscriptions s on s.subscription_id = e.subscription_id
           where e.eco_id = $1 and s.stripe_subscription_id is not null"#,
        eco_id,
    )
    .fetch_all(db)
    .await
}

/// They are cleared.
#[tracing::instrument(name = "db.eco_ended_subscriptions.clear", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn clear(db: &mut PgConnection, cleared: &[Ended]) -> sqlx::Result<()> {
    let ids: Vec<i64> = cleared.iter().map(|ended| ended.subscription_id).collect();
    sqlx::query!(
        "update eco_ended_subscriptions set cleared_time = now(), failures = 0, failure = null
         where subscription_id = any ($1) and cleared_time is null",
        &ids,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Those of an account that are not cleared are due again after a while; `failure`: why.
#[tracing::instrument(name = "db.eco_ended_subscriptions.put_off", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn put_off(
    db: &mut PgConnection,
    eco_id: &str,
    failure: Option<&str>,
    again_in: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_ended_subscriptions
         set failures = failures + case when $2::text is null then 0 else 1 end, failure = $2,
             due_time = now() + make_interval(secs => $3)
         where eco_id = $1 and cleared_time is null",
        eco_id,
        failure,
        again_in.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(())
}
