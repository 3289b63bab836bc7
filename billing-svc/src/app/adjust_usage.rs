//! Corrects an account's usage: signed units in the open segment of its current period, with a reason. A charge that was
//! too high then becomes a negative item by the next run.

use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;

use crate::{
    domain::{adjustment::Adjustment, period::PeriodKey},
    error::Error,
    store::{accounts, adjustments, changes, facts, records, subscriptions},
};

/// Returns the units of the period with the correction; a repeat of a request returns the first answer.
pub async fn run(pool: &PgPool, asked: &Adjustment, actor: &str) -> Result<i64, Error> {
    let mut transaction = db::begin(pool).await?;
    subscriptions::seize(&mut transaction, &asked.eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    if let Some(made) = adjustments::find(&mut transaction, asked).await? {
        if (made.units, &made.reason) != (asked.units, &asked.reason) {
            return Err(Violations::one("request_id", "was used for another adjustment").into());
        }
        return Ok(made.api_calls);
    }
    let unknown = || Error::AccountNotFound(asked.eco_id.clone());
    let subscription = subscriptions::get(&mut transaction, &asked.eco_id).await?.ok_or_else(unknown)?;
    if subscription.closed_time.is_some() {
        return Err(Error::AccountClosed(asked.eco_id.clone()));
    }
    let period = [PeriodKey { eco_id: asked.eco_id.to_string(), start: subscription.period.start }];
    let before = facts::read(&mut transaction, &period).await?.pop().ok_or_else(unknown)?;
    if asked.goes_below_zero(&before) {
        return Err(Error::BelowZero { open_units: before.open_units });
    }
    let api_calls = adjustments::insert(&mut transaction, asked, &before).await?;
    // At once, so that what accrued is never taken from a summary of before.
    let after = facts::read(&mut transaction, &period).await?;
    records::upsert(&mut transaction, &after).await?;
    // And once more after that: whoever read the counts before this was committed may write what they were then, over
    // it; so may this, over what was counted meanwhile. Nobody would see the difference, nor make it good.
    changes::add(&mut transaction, &period[0]).await?;
    // What a spend cap admits follows from it.
    accounts::renew_spend_cap(&mut transaction, &asked.eco_id).await?;
    transaction.commit().await?;
    Ok(api_calls)
}
