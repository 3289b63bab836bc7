//! Clears what an account owes under subscriptions at Stripe that have ended: no cycle of them makes an invoice any more.
//! The periods that ended with them are rounded for good; what lies on drafts of theirs that nobody finalises is taken off
//! them; all that is owed is charged, and what no invoice takes by itself is put on one made for it, to be collected.
//!
//! Every end is a job (`eco_ended_subscriptions`), whether or not the account has another subscription by then, or is
//! closed. It is done when nothing is left on a draft; what passes by itself is waited for without end. The [`Worker`] does
//! those that are due, a run all of them: two at once meet in the ledger, and in the settlement that is written down.
//!
//! A period ends with its subscription where the end was heard of before the next one began: calls that were counted
//! between the end and its hearing are billed in it. Heard of later, the period of that time goes on by what is in force
//! now, is charged here to the cent, and rounded for good by a daily run, as any other.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all};
use nexus_kit::db;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    collect,
    process_overage::{ChargeContext, charge_account, owing, passes},
    refresh,
    take_back::{self, Taken},
};
use crate::{
    domain::{
        run::{AccountError, AccountResult},
        stripe_event::backoff,
    },
    error::Error,
    store::{
        ended_subscriptions::{self, Job},
        identity, records,
    },
};

/// When is looked again at drafts that are finalised by themselves: Stripe waits an hour, as a rule.
const DRAFTS_GO_ON: Duration = Duration::from_secs(1_800);
/// Longest time one may take, and how long it is left to who has it.
const WITHIN: Duration = Duration::from_secs(75);
const LEFT_ALONE: Duration = Duration::from_secs(90);
/// How often is looked for some that another has noted, or that are due again.
const EVERY: Duration = Duration::from_secs(1);
/// After a look that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How far an account is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is left to do; what cannot be charged is a run's.
    Clear,
    /// Charges are on drafts that are finalised by themselves: it is to be looked at again.
    OnDrafts,
    /// The result says why not; it is to be tried again.
    Failed,
}

/// To be called once our tables say that a subscription has ended; repeated, it goes on where it was cut off. Where
/// nothing has ended, what lies on drafts that nobody finalises is taken off them, and what no invoice takes is collected,
/// all the same.
#[tracing::instrument(name = "settlement.ended", skip_all, fields(eco_id))]
pub async fn run(context: &ChargeContext, eco_id: &str) -> Result<(Standing, AccountResult), Error> {
    let ended = {
        let mut connection = db::acquire(&context.pool).await?;
        if !identity::is_known(&mut connection).await? {
            return Err(Error::ReconcileRequired);
        }
        ended_subscriptions::open(&mut connection, eco_id).await?
    };
    if let Some(last) = ended.iter().map(|ended| ended.ended_time).max() {
        refresh::drain(&context.pool).await?;
        let mut connection = db::acquire(&context.pool).await?;
        records::settle_early(&mut connection, eco_id, last).await?;
    }
    let mut result = AccountResult::default();
    let taken = match take_back::run(context, eco_id).await? {
        Ok(taken) => taken,
        Err(error) => return Ok(failed(result, error)),
    };
    if !ended.is_empty() || taken.some {
        let periods = owing(&context.pool, eco_id, None).await?;
        result = charge_account(context, &periods).await;
        // What is refused for good keeps nothing else from being collected.
        if result.error.as_ref().is_some_and(passes) {
            return Ok((Standing::Failed, result));
        }
    }
    if let Some(error) = collect::run(context, eco_id).await? {
        return Ok(failed(result, error));
    }
    if taken.left {
        return Ok((Standing::OnDrafts, result));
    }
    // A charge that was in doubt may have been on such a draft.
    if result.charged {
        match take_back::run(context, eco_id).await? {
            Ok(Taken { some: false, left: false }) => {}
            Ok(_) => return Ok((Standing::OnDrafts, result)),
            Err(error) => return Ok(failed(result, error)),
        }
    }
    let mut connection = db::acquire(&context.pool).await?;
    ended_subscriptions::clear(&mut connection, &ended).await?;
    Ok((Standing::Clear, result))
}

fn failed(result: AccountResult, error: AccountError) -> (Standing, AccountResult) {
    (Standing::Failed, AccountResult { error: Some(error), ..result })
}

/// Clears what is due until the server stops.
pub struct Worker {
    /// What charging needs.
    pub charging: ChargeContext,
    /// Accounts that are cleared at once.
    pub concurrency: usize,
    /// Something was noted, perhaps.
    pub wake: Arc<Notify>,
    /// Ends it, when what it has in hand is done.
    pub shutdown: CancellationToken,
}

impl Worker {
    /// Works until `shutdown`. Dropped, it ends where it is.
    pub async fn run(self) {
        join_all((0..self.concurrency).map(|_| self.one_after_the_other())).await;
    }

    async fn one_after_the_other(&self) {
        let mut has_failed = false;
        while !self.shutdown.is_cancelled() {
            let wait = match self.next().await {
                Ok(true) => continue,
                Ok(false) => {
                    has_failed = false;
                    EVERY
                }
                Err(error) => {
                    if !has_failed {
                        tracing::warn!(%error, "ended subscriptions could not be looked for");
                    }
                    has_failed = true;
                    PAUSE
                }
            };
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does one that is due; false: none is.
    async fn next(&self) -> Result<bool, Error> {
        let job = {
            let mut connection = db::acquire(&self.charging.pool).await?;
            ended_subscriptions::take(&mut connection, LEFT_ALONE).await?
        };
        let Some(Job { eco_id, failures }) = job else { return Ok(false) };
        let (failure, again_in) = match self.attempt(&eco_id).await {
            Ok(Standing::Clear) => return Ok(true),
            Ok(_) => (None, DRAFTS_GO_ON),
            Err(why) => {
                let failures = failures.saturating_add(1);
                tracing::warn!(
                    eco_id,
                    why,
                    failures,
                    "an ended subscription is not cleared, and is tried again"
                );
                (Some(why), backoff(failures, &mut rand::rng()))
            }
        };
        let mut connection = db::acquire(&self.charging.pool).await?;
        ended_subscriptions::put_off(&mut connection, &eco_id, failure.as_deref(), again_in).await?;
        Ok(true)
    }

    /// How far an account is then, or why it is to be tried again.
    async fn attempt(&self, eco_id: &str) -> Result<Standing, String> {
        let clearing = AssertUnwindSafe(run(&self.charging, eco_id)).catch_unwind();
        let (standing, result) = match tokio::time::timeout(WITHIN, clearing).await {
            Ok(Ok(cleared)) => cleared.map_err(|error| error.to_string())?,
            Ok(Err(_panic)) => return Err("clearing it panicked".to_owned()),
            Err(_elapsed) => return Err("clearing it took too long".to_owned()),
        };
        if let Some(error) = result.error {
            if standing == Standing::Failed {
                return Err(error.message);
            }
            // Each run tells of it, and charges it once it is mended.
            tracing::warn!(eco_id, reason = error.reason, "not all could be settled");
        }
        Ok(standing)
    }
}
