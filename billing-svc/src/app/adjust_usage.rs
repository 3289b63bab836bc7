//! Corrects an account's usage: signed units in the open segment of its current period, or where it is told to, with a reason.
//! A charge that was too high then becomes a negative item by the next run.

use nexus_kit::{db, validate::Violations};
use sqlx::{PgConnection, PgPool};

use crate::{
    domain::{adjustment::Adjustment, period::PeriodKey},
    error::Error,
    store::{accounts, adjustments, changes, facts, lease, records, segments, subscriptions},
};

/// Returns the units of the period with the correction; a repeat of a request returns the first answer.
pub async fn run(pool: &PgPool, asked: &Adjustment, actor: &str) -> Result<i64, Error> {
    let mut transaction = db::begin(pool).await?;
    if asked.segment.is_some() {
        // Who computed the summary before has committed: what accrued is altered with the segments.
        lease::refresh(&mut transaction).await?;
    }
    subscriptions::seize(&mut transaction, &asked.eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    if let Some(made) = adjustments::find(&mut transaction, asked).await? {
        if (made.units, &made.reason) != (asked.units, &asked.reason) || !made.is_where(asked) {
            return Err(Violations::one("request_id", "was used for another adjustment").into());
        }
        return Ok(made.api_calls);
    }
    let period = [period(&mut transaction, asked).await?];
    let unknown = || Error::AccountNotFound(asked.eco_id.clone());
    let before = facts::read(&mut transaction, &period).await?.pop().ok_or_else(unknown)?;
    let no_such = || Violations::one("segment", "is not in the period");
    let place = asked.place(&before).ok_or_else(no_such)?;
    if place.units.saturating_add(asked.units) < 0 {
        return Err(Error::BelowZero { units: place.units });
    }
    let api_calls = adjustments::insert(&mut transaction, asked, &before, place).await?;
    if place.segment < before.closed.len() {
        segments::correct(&mut transaction, &period[0], &asked.corrected(&before, place)).await?;
    }
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

/// The period that is corrected.
async fn period(db: &mut PgConnection, asked: &Adjustment) -> Result<PeriodKey, Error> {
    let unknown = || Error::AccountNotFound(asked.eco_id.clone());
    let subscription = subscriptions::get(db, &asked.eco_id).await?.ok_or_else(unknown)?;
    if subscription.closed_time.is_some() {
        return Err(Error::AccountClosed(asked.eco_id.clone()));
    }
    let current = subscription.period;
    let start = match asked.period_time {
        Some(at) if at < current.start || current.end <= at => {
            let none = || Violations::one("period_time", "lies in no period in which anything was counted");
            records::period_at(db, &asked.eco_id, at).await?.ok_or_else(none)?
        }
        _ => current.start,
    };
    Ok(PeriodKey { eco_id: asked.eco_id.to_string(), start })
}
