//! Sends a change until it is known what became of it, within bounds.

use nexus_core::plan::Plan;
use nexus_kit::db;

use super::Sales;
use crate::{
    domain::{
        stripe_change::{ChangeOutcome, SubscriptionChange, WrittenChange, is_so},
        stripe_objects::Subscription,
    },
    error::Error,
    payments::{Advice, Doubt, Outcome, Refusal, pace::backoff},
    store::{plans, stripe_changes, subscriptions},
};

/// Times that a change is sent at most, before it is left to the worker.
const MAX_TRIES: u32 = 3;
/// From this attempt on a change that Stripe makes, and that is not so after it, is given up: it would be asked for for ever.
const MAX_ATTEMPTS: i32 = 10;

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
            Outcome::Succeeded { .. } => match finish(sales, &change).await? {
                Made::Known(carried) => return Ok(carried),
                Made::NotSo(_) if change.attempt >= MAX_ATTEMPTS => return not_so(sales, &change).await,
                // It is asked for anew, in the form that fits what was found.
                Made::NotSo(found) => {
                    change.change = change.change.as_found(&found);
                    let message = "the subscription is not as it was asked for".to_owned();
                    Doubt { advice: Advice::Look, retry_after: None, message }
                }
            },
            Outcome::FailedForGood(refusal) => {
                return refused(sales, &change, refusal, |asked, current| asked < current).await;
            }
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

/// What became of a change that Stripe says it has made.
enum Made {
    /// It is so, or what is so is not known.
    Known(Carried),
    /// It is not so.
    NotSo(Subscription),
}

/// It is made: what is so is read, and our tables are brought to that.
async fn finish(sales: &Sales, change: &WrittenChange) -> Result<Made, Error> {
    sales.events.pace.wait().await;
    match sales.events.subscriptions.subscription(&change.subscription).await {
        Err(doubt) => return Ok(Made::Known(Carried::Left(doubt))),
        // A request that was given up before, or somebody at Stripe, may have changed it since; or it ends by a date, and
        // it was not known that it does.
        Ok(Some(found)) if !is_so(&found, &change.change) => return Ok(Made::NotSo(found)),
        Ok(_) => {}
    }
    match sales.bring_up(&change.subscription, None).await {
        Ok(()) => {}
        Err(Error::StripeUnavailable(message)) => {
            let doubt = Doubt { advice: Advice::Later, retry_after: None, message };
            return Ok(Made::Known(Carried::Left(doubt)));
        }
        Err(error) => return Err(error),
    }
    settle(sales, change, &ChangeOutcome::Done, |asked, current| asked == current).await?;
    Ok(Made::Known(Carried::Done))
}

/// Stripe makes it, time and again, and it is not so. What waits here stays, or goes, by what is read at Stripe.
async fn not_so(sales: &Sales, change: &WrittenChange) -> Result<Carried, Error> {
    let message = "Stripe has made the change, but the subscription is not as it was asked for".to_owned();
    let refusal = Refusal { reason: "NOT_SO".to_owned(), message };
    refused(sales, change, refusal, |_, _| false).await
}

/// It is refused: a plan that waits for it waits no more, where `keeps` says so as for [`settle`].
async fn refused(
    sales: &Sales,
    change: &WrittenChange,
    refusal: Refusal,
    keeps: impl Fn(Plan, Plan) -> bool + Send,
) -> Result<Carried, Error> {
    let outcome = ChangeOutcome::Refused(refusal.message.clone());
    settle(sales, change, &outcome, keeps).await?;
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
