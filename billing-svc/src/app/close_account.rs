//! Closes an account: later calls are refused, what it owes is still billed. Its open segment is added up and closed as
//! by a change of plan, so that nothing accrues any more and nothing is lost. Its subscription at Stripe is ended there, and a
//! checkout that is open: that is written down with the closing, so that it is done whatever is cut off.

use nexus_core::{id::EcoId, plan::SubscriptionStatus};
use nexus_kit::db;
use sqlx::PgConnection;

use super::{
    change_plan::{close_segment, without_due},
    sales::{
        Sales,
        carry_out::{Carried, carry_out},
        checkout,
        worker::OWN_TIME,
    },
};
use crate::{
    domain::{account::Account, stripe_change::SubscriptionChange},
    error::Error,
    store::{accounts, checkouts, stripe_changes, stripe_subscriptions, subscriptions},
};

/// Returns the account, closed. One that is closed already stays as it is, so that any repeat has the same answer.
pub async fn run(sales: &Sales, eco_id: &EcoId, actor: &str) -> Result<Account, Error> {
    let mut transaction = db::begin(&sales.pool).await?;
    subscriptions::seize(&mut transaction, eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let subscription = subscriptions::get(&mut transaction, eco_id).await?.ok_or_else(unknown)?;
    let (mut at_stripe, mut open_checkout) = (None, None);
    if subscription.closed_time.is_none() {
        if let Some(id) = &subscription.stripe_subscription_id {
            let end = SubscriptionChange::EndNow;
            at_stripe = Some(stripe_changes::insert(&mut transaction, eco_id, id, &end, OWN_TIME).await?);
        }
        open_checkout = checkouts::end(&mut transaction, eco_id, OWN_TIME).await?;
        let subscription = without_due(&mut transaction, subscription).await?;
        close_segment(&mut transaction, eco_id, &subscription).await?;
        let canceled = Some(SubscriptionStatus::Canceled);
        let id = subscription.subscription_id;
        stripe_subscriptions::end(&mut transaction, id, canceled, subscription.now).await?;
        accounts::close(&mut transaction, eco_id, subscription.now).await?;
    }
    let account = read(&mut transaction, eco_id).await?;
    transaction.commit().await?;
    if let Some(end) = at_stripe
        && let Carried::Left(doubt) = carry_out(sales, &end).await?
    {
        tracing::warn!(eco_id = %eco_id, reason = doubt.message, "the subscription of a closed account is ended later");
    }
    if let Some(open) = open_checkout
        && let Err(error) = checkout::end(sales, eco_id, &open).await
    {
        tracing::warn!(%error, eco_id = %eco_id, "the checkout of a closed account is ended later");
    }
    account.ok_or_else(unknown)
}

async fn read(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<Account>> {
    accounts::get(db, eco_id.as_str()).await
}
