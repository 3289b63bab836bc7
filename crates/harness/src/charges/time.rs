//! Lets time pass: Stripe's clock is moved on, and what the database knows as the age of things is as much more.

use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use sqlx::PgConnection;
use tokio::time::sleep;

use crate::stripe::Stripe;

const PAUSE: Duration = Duration::from_millis(5);

const AGES: [&str; 6] = [
    "update eco_overage_charges
     set created_time = created_time - $1, sent_time = sent_time - $1, finished_time = finished_time - $1,
         recheck_time = recheck_time - $1",
    "update eco_settlements
     set created_time = created_time - $1, attempt_time = attempt_time - $1, listed_time = listed_time - $1,
         filled_time = filled_time - $1, finished_time = finished_time - $1",
    "update eco_usage_records set settle_time = coalesce(settle_time, period_end + interval '24 hours') - $1
     where settle_time is not null or period_end <= now()",
    "update eco_usage_records set settled_time = settled_time - $1 where settled_time is not null",
    "update eco_stripe_events set due_time = due_time - $1 where processed_time is null",
    "update eco_ended_subscriptions set due_time = due_time - $1 where cleared_time is null",
];

/// Whether events or ends of subscriptions wait for billing-svc, which then may be at work by itself.
pub(super) async fn is_anything_left(db: &mut PgConnection) -> Result<bool> {
    let left = "select exists (select from eco_stripe_events where processed_time is null)
                    or exists (select from eco_ended_subscriptions where cleared_time is null)";
    Ok(sqlx::query_scalar(left).fetch_one(db).await?)
}

/// Whether any of that is to be done now.
pub(super) async fn is_anything_due(db: &mut PgConnection) -> Result<bool> {
    let due = "select exists (select from eco_stripe_events where processed_time is null and due_time <= now())
                   or exists (select from eco_ended_subscriptions where cleared_time is null and due_time <= now())";
    Ok(sqlx::query_scalar(due).fetch_one(db).await?)
}

/// Returns once nobody else has a session: those of a process that was killed end a little later.
pub(super) async fn until_alone(db: &mut PgConnection) -> Result<()> {
    let others = "select exists (select from pg_stat_activity
                  where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid())";
    while sqlx::query_scalar(others).fetch_one(&mut *db).await? {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Lets so much time pass. Nobody is at work meanwhile: between a look at an age and what is done by it no day passes.
pub(super) async fn pass(db: &mut PgConnection, stripe: &Stripe, time: TimeDelta) -> Result<()> {
    stripe.idle().await?;
    for statement in AGES {
        sqlx::query(statement).bind(time).execute(&mut *db).await?;
    }
    stripe.advance(time.num_seconds()).await
}
