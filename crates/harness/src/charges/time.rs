//! Lets time pass: Stripe's clock is moved on, and what the database knows as the age of things is as much more.

use anyhow::Result;
use chrono::TimeDelta;
use sqlx::PgConnection;

use crate::stripe::Stripe;

const AGES: [&str; 4] = [
    "update eco_overage_charges
     set created_time = created_time - $1, sent_time = sent_time - $1, finished_time = finished_time - $1,
         recheck_time = recheck_time - $1",
    "update eco_settlements
     set created_time = created_time - $1, attempt_time = attempt_time - $1, listed_time = listed_time - $1,
         filled_time = filled_time - $1, finished_time = finished_time - $1",
    "update eco_usage_records set settle_time = settle_time - $1 where settle_time is not null",
    "update eco_usage_records set settled_time = settled_time - $1 where settled_time is not null",
];

/// Lets so much time pass. Every request to Stripe has come to its end before.
pub(super) async fn pass(db: &mut PgConnection, stripe: &Stripe, time: TimeDelta) -> Result<()> {
    stripe.idle().await?;
    for statement in AGES {
        sqlx::query(statement).bind(time).execute(&mut *db).await?;
    }
    stripe.advance(time.num_seconds()).await
}
