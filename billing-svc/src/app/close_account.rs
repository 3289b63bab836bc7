//! Closes an account: later calls are refused, what it owes is still billed. Its open segment is added up and closed as
//! by a change of plan, so that nothing accrues any more and nothing is lost.

use nexus_core::{id::EcoId, plan::SubscriptionStatus};
use nexus_kit::db;
use sqlx::{PgConnection, PgPool};

use super::change_plan::{close_segment, without_due};
use crate::{
    domain::account::Account,
    error::Error,
    store::{accounts, stripe_subscriptions, subscriptions},
};

/// Returns the account, closed. One that is closed already stays as it is, so that any repeat has the same answer.
pub async fn run(pool: &PgPool, eco_id: &EcoId, actor: &str) -> Result<Account, Error> {
    let mut transaction = db::begin(pool).await?;
    subscriptions::seize(&mut transaction, eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let subscription = subscriptions::get(&mut transaction, eco_id).await?.ok_or_else(unknown)?;
    if subscription.closed_time.is_none() {
        let subscription = without_due(&mut transaction, subscription).await?;
        close_segment(&mut transaction, eco_id, &subscription).await?;
        let canceled = Some(SubscriptionStatus::Canceled);
        let id = subscription.subscription_id;
        stripe_subscriptions::end(&mut transaction, id, canceled, subscription.now).await?;
        accounts::close(&mut transaction, eco_id, subscription.now).await?;
    }
    let account = read(&mut transaction, eco_id).await?;
    transaction.commit().await?;
    account.ok_or_else(unknown)
}

async fn read(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<Account>> {
    accounts::get(db, eco_id.as_str()).await
}
