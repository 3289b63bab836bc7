//! Accounts for tests, written directly.

use anyhow::Result;
use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;
use sqlx::PgPool;

/// An account with an active subscription whose periods begin at `anchor`.
pub async fn account(pool: &PgPool, eco_id: &str, plan: Plan, anchor: DateTime<Utc>) -> Result<()> {
    sqlx::query("insert into eco_identities (eco_id, email) values ($1, $1 || '@example.com')")
        .bind(eco_id)
        .execute(pool)
        .await?;
    sqlx::query(
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time) values ($1, $2, 1, 'active', $3)",
    )
    .bind(eco_id)
    .bind(plan.as_str())
    .bind(anchor)
    .execute(pool)
    .await?;
    Ok(())
}

/// Gives an account a customer and a subscription at Stripe.
pub async fn stripe_ids(
    pool: &PgPool,
    eco_id: &str,
    customer: &str,
    subscription: Option<&str>,
) -> Result<()> {
    sqlx::query("update eco_identities set stripe_customer_id = $2 where eco_id = $1")
        .bind(eco_id)
        .bind(customer)
        .execute(pool)
        .await?;
    sqlx::query(
        "update eco_subscriptions set stripe_subscription_id = $2 where eco_id = $1 and ended_time is null",
    )
    .bind(eco_id)
    .bind(subscription)
    .execute(pool)
    .await?;
    Ok(())
}
