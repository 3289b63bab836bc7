//! Makes what was left: by a process that ended, a caller that went away, a Stripe that was away. That is changes of
//! subscriptions, and the ends of checkouts of accounts that are closed. Looks what came of checkouts whose time is over. And
//! makes customers.

use std::time::Duration;

use nexus_kit::db;
use tokio_util::sync::CancellationToken;

use super::{
    Sales,
    carry_out::{Carried, carry_out},
    checkout, customer,
};
use crate::{
    domain::stripe_event::backoff,
    error::Error,
    store::{checkouts, stripe_changes},
};

/// How often is looked for some.
const EVERY: Duration = Duration::from_secs(1);
/// Within this, whoever wrote a change down makes it; longer than that takes.
pub const OWN_TIME: Duration = Duration::from_secs(90);

/// Makes what is left until `shutdown`. Dropped, it ends where it is.
pub async fn run(sales: Sales, shutdown: CancellationToken) {
    let mut failed = false;
    while !shutdown.is_cancelled() {
        match next(&sales).await {
            Ok(true) => continue,
            Ok(false) => failed = false,
            Err(error) if failed => {
                tracing::debug!(%error, "changes of subscriptions could still not be made")
            }
            Err(error) => {
                tracing::warn!(%error, "changes of subscriptions could not be made");
                failed = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Makes one of each kind that is due; false: there is none.
async fn next(sales: &Sales) -> Result<bool, Error> {
    // Each kind has its turn, however many there are of another.
    let changed = change(sales).await?;
    let ended = end_checkout(sales).await?;
    let made = customer::make_due(sales, None).await?;
    Ok(changed || ended || made)
}

async fn change(sales: &Sales) -> Result<bool, Error> {
    let taken = {
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_changes::take(&mut connection, OWN_TIME).await?
    };
    let Some(change) = taken else { return Ok(false) };
    if let Carried::Left(doubt) = carry_out(sales, &change).await? {
        let failures = change.failures.saturating_add(1);
        let again_in = backoff(failures, &mut rand::rng()).max(doubt.retry_after.unwrap_or_default());
        tracing::warn!(eco_id = %change.eco_id, change_id = change.change_id, failures, reason = doubt.message, "a change of a subscription is tried again");
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_changes::fail(&mut connection, change.change_id, &doubt.message, again_in).await?;
    }
    Ok(true)
}

async fn end_checkout(sales: &Sales) -> Result<bool, Error> {
    let taken = {
        let mut connection = db::acquire(&sales.pool).await?;
        checkouts::take(&mut connection, OWN_TIME).await?
    };
    let Some((eco_id, written, failures)) = taken else { return Ok(false) };
    if let Err(error) = checkout::end(sales, &eco_id, &written).await {
        let failures = failures.saturating_add(1);
        tracing::warn!(%error, eco_id = %eco_id, failures, "a checkout is ended, or looked at, again later");
        let again_in = backoff(failures, &mut rand::rng());
        let mut connection = db::acquire(&sales.pool).await?;
        checkouts::fail(&mut connection, &eco_id, written.number, again_in).await?;
    }
    Ok(true)
}
