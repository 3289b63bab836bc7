//! An account's subscription: what it has, until when, and what comes after.

use nexus_core::{id::EcoId, money::Micros};
use nexus_kit::db;
use sqlx::PgPool;

use crate::{
    domain::{account::Account, plan_change::Subscription},
    error::Error,
    store::{accounts, plans, subscriptions},
};

/// An account's subscription, as it is shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The account.
    pub account: Account,
    /// Its subscription.
    pub subscription: Subscription,
    /// What its plan costs a month in the account's currency, by the plan's newest version.
    pub monthly: Option<Micros>,
}

/// Returns it, a closed account's last one, too.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<Shown, Error> {
    let mut snapshot = db::snapshot(pool).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let account = accounts::get(&mut snapshot, eco_id.as_str()).await?.ok_or_else(unknown)?;
    let subscription = subscriptions::get(&mut snapshot, eco_id).await?.ok_or_else(unknown)?;
    let versions = plans::list_newest(&mut snapshot).await?;
    let prices = versions.into_iter().filter(|version| version.plan == account.plan);
    let price = prices.flat_map(|version| version.prices).find(|p| p.currency_code == account.currency_code);
    snapshot.rollback().await?;
    Ok(Shown { account, subscription, monthly: price.map(|price| Micros(price.monthly_micros)) })
}
