//! Sends a change until it is known what became of it, within bounds.

use nexus_core::plan::Plan;
use nexus_kit::db;

use super::Sales;
use crate::{
    domain::stripe_change::{ChangeOutcome, SubscriptionChange, WrittenChange, is_so},
    error::Error,
    payments::{Advice, Doubt, Outcome, Refusal, pace::backoff},
    store::{plans, stripe_changes, subscriptions},
};

/// Times that a change is sent at most, before it is left to the worker.
const MAX_TRIES: u32 = 3;

/// What became of a change.
#[derive(Debug)]
pub enum Carried {
    /// Stripe has made it, and our tables say so.
    Done,
    /// Stripe has refused it.
    Refused(Refusal),
    /// It is not known, or our tables could not be brought up.
    Left(Doubt),
}

impl Carried {
    /// Whether it is made, and else why not.
    pub fn done(self) -> Result<(), Error> {
        match self {
            Self::Done => Ok(()),
            Self::Refused(refusal) => Err(Error::StripeRefused(refusal.message)),
            Self::Left(doubt) => {
                let message = format!("it is written down and goes on by itself ({})", doubt.message);
                Err(Error::StripeUnavailable(message))
            }
        }
    }
}

/// Sends a change, and brings our tables up after.
#[tracing::instrument(name = "sales.carry_out", skip_all, fields(eco_id = %change.eco_id, change_id = change.change_id))]
pub async fn carry_out(sales: &Sales, change: &WrittenChange) -> Result<Carried, Error> {
    let mut change = change.clone();
    let mut last = Doubt { advice: Advice::Later, retry_after: None, message: "it was not sent".to_owned() };
    for tries in 0..MAX_TRIES {
        if !change.is_young {
            let mut connection = db::acquire(&sales.pool).await?;
            match stripe_changes::next_attempt(&mut connection, &change).await? {
                Some(next) => change = next,
                None => return Ok(Carried::Left(last)),
            }
        }
        sales.events.pace.wait().await;
        let sent = sales.port.change_subscription(&change.subscription, &change.change, &change.key()).await;
        last = match sent {
            Outcome::Succeeded { .. } => return finish(sales, &change).await,
            Outcome::FailedForGood(refusal) => return refused(sales, &change, refusal).await,
            Outcome::Unknown(doubt) => doubt,
        };
        if let Some(time) = last.retry_after {
            sales.events.pace.pause_all(time);
        }
        match last.advice {
            Advice::Later => break,
            // The same would bring the same answer.
            Advice::Look => change.is_young = false,
            Advice::Again => {
                let pause = backoff(tries, &mut rand::rng());
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(Carried::Left(last))
}

/// It is made: what is so is read, and our tables are brought to that.
async fn finish(sales: &Sales, change: &WrittenChange) -> Result<Carried, Error> {
    sales.events.pace.wait().await;
    let found = match sales.events.subscriptions.subscription(&change.subscription).await {
        Ok(found) => found,
        Err(doubt) => return Ok(Carried::Left(doubt)),
    };
    // A request that was given up before, or somebody at Stripe, may have changed it since.
    if found.is_some_and(|found| !is_so(&found, &change.change)) {
        let mut connection = db::acquire(&sales.pool).await?;
        stripe_changes::next_attempt(&mut connection, change).await?;
        let message = "the subscription is not as it was asked for".to_owned();
        return Ok(Carried::Left(Doubt { advice: Advice::Again, retry_after: None, message }));
    }
    match sales.bring_up(&change.subscription, None).await {
        Ok(()) => {}
        Err(Error::StripeUnavailable(message)) => {
            return Ok(Carried::Left(Doubt { advice: Advice::Later, retry_after: None, message }));
        }
        Err(error) => return Err(error),
    }
    settle(sales, change, &ChangeOutcome::Done, |asked, current| asked == current).await?;
    Ok(Carried::Done)
}

/// It is refused: a plan that waits for it waits no more.
async fn refused(sales: &Sales, change: &WrittenChange, refusal: Refusal) -> Result<Carried, Error> {
    let outcome = ChangeOutcome::Refused(refusal.message.clone());
    settle(sales, change, &outcome, |asked, current| asked < current).await?;
    tracing::warn!(eco_id = %change.eco_id, reason = refusal.reason, "Stripe refused a change of a subscription");
    // It may have ended, which an event says, or has said.
    if let Err(error) = sales.bring_up(&change.subscription, None).await {
        tracing::info!(%error, "a subscription could not be read after a change was refused");
    }
    Ok(Carried::Refused(refusal))
}

/// Keeps what became of a change. Where `keeps` says so of the plan asked for and the present one, the account keeps the
/// present one: a lower one that waits for the period's end does not come, a newer version of the own one does.
async fn settle(
    sales: &Sales,
    change: &WrittenChange,
    outcome: &ChangeOutcome,
    keeps: impl Fn(Plan, Plan) -> bool + Send,
) -> Result<(), Error> {
    let eco_id = &change.eco_id;
    let mut transaction = db::begin(&sales.pool).await?;
    subscriptions::seize(&mut transaction, eco_id).await?;
    let is_news = stripe_changes::end(&mut transaction, change.change_id, outcome).await?;
    if let SubscriptionChange::Price { plan, .. } = change.change
        && is_news
        && let Some(subscription) = subscriptions::get(&mut transaction, eco_id).await?
        && keeps(plan, subscription.plan)
        && subscription.waiting.is_some_and(|waiting| waiting.plan < subscription.plan)
    {
        let id = subscription.subscription_id;
        subscriptions::set_waiting(&mut transaction, id, None).await?;
        plans::hand_out(&mut transaction, None, Some(id)).await?;
    }
    Ok(transaction.commit().await?)
}
