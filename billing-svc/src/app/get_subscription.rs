//! An account's subscription: what it has, until when, and what comes after.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{
    domain::sale::ShownSubscription,
    error::Error,
    store::{accounts, plans, subscriptions},
};

/// Returns it, a closed account's last one, too.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<ShownSubscription, Error> {
    let mut snapshot = db::snapshot(pool).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let account = accounts::get(&mut snapshot, eco_id.as_str()).await?.ok_or_else(unknown)?;
    let subscription = subscriptions::get(&mut snapshot, eco_id).await?.ok_or_else(unknown)?;
    let versions = plans::list_newest(&mut snapshot).await?;
    snapshot.rollback().await?;
    let prices = versions.into_iter().filter(|version| version.plan == account.plan);
    let price = prices.flat_map(|version| version.prices).find(|p| p.currency_code == account.currency_code);
    let is_closed = account.closed_time.is_some();
    // A newer version of the own plan is no other plan.
    let next = subscription
        .waiting
        .filter(|waiting| waiting.time > subscription.now && waiting.plan != account.plan && !is_closed);
    Ok(ShownSubscription {
        eco_id: account.eco_id,
        plan: account.plan,
        status: account.subscription_status,
        period_start: subscription.period.start,
        period_end: subscription.period.end,
        next: next.map(|next| (next.plan, next.time)),
        cancel_time: subscription.cancel_time.filter(|_| !is_closed),
        stripe_subscription_id: account.stripe_subscription_id,
        monthly_micros: price.map(|price| price.monthly_micros),
        currency_code: account.currency_code,
    })
}
