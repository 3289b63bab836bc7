//! Sends an intent until it is known what became of it: steps 3 and 4 of [`super::charge`].

use chrono::TimeDelta;
use nexus_kit::db;
use sqlx::Acquire;

use super::charge::{ChargeContext, note_failure};
use crate::{
    domain::{
        books::RESOLVED_WITHIN,
        charge::{Intent, RECHECK_AFTER, Readiness},
        period::ParkReason,
        run::AccountError,
    },
    error::Error,
    payments::{
        Advice, Doubt, Outcome, Refusal,
        pace::{LONGEST_PAUSE, backoff},
    },
    store::{
        charges::{self, Made},
        rechecks, records, stripe_events,
    },
};

/// Sends and searches for one intent within a run; what is still in doubt then is the next run's.
pub(in crate::app) const MAX_TRIES: u32 = 6;

/// Why a charge stays in doubt that Stripe has with another amount, as a word.
pub(super) const ITEM_DIFFERS: &str = "ITEM_DIFFERS";

/// Whether an intent may be at Stripe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Never,
    Perhaps,
}

/// What became of a charge.
pub(super) enum ChargeOutcome {
    /// Stripe has it.
    Charged,
    /// Another has it in hand, or has brought it to its end: a run and a settlement may meet.
    Elsewhere,
    /// It went no further.
    Not(AccountError),
}

/// Sends an intent until it is known what became of it, within bounds.
pub(super) async fn carry_out(
    context: &ChargeContext,
    intent: &Intent,
    mut sent: Sent,
) -> Result<ChargeOutcome, Error> {
    let mut intent = intent.clone();
    // Who sent it may have had another key of Stripe's, which its keys of ours may be kept by.
    let mut unseen = sent == Sent::Perhaps;
    let mut look = false;
    let mut last = "the run was stopped before it could ask".to_owned();
    for tries in 0..MAX_TRIES {
        if !context.turn().await {
            break;
        }
        let ready = context.together.ready(&context.pool, intent.charge_id, intent.attempt, context.run_id);
        let readiness = ready.await?;
        let doubt = match readiness {
            Readiness::Gone => return Ok(ChargeOutcome::Elsewhere),
            Readiness::Send if unseen => match seen(context, &intent).await? {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {
                    unseen = false;
                    continue;
                }
                Err(doubt) => doubt,
            },
            Readiness::Send if !look => {
                let before = sent;
                sent = Sent::Perhaps;
                match context.payments.create_invoice_item(&intent.item, &intent.key()).await {
                    Outcome::Succeeded { id, replayed } => match is_kept(context, &id, replayed).await {
                        Ok(true) => return succeeded(context, &intent, &id).await,
                        // It was deleted since: this key makes it no more.
                        Ok(false) => {
                            look = true;
                            continue;
                        }
                        Err(doubt) => doubt,
                    },
                    Outcome::FailedForGood(refusal) => {
                        let Some(next) = intent.elsewhere() else {
                            return refused(context, &intent, before, refusal).await;
                        };
                        tracing::info!(charge_id = %intent.charge_id, reason = refusal.reason, "a charge is not taken where it was to be put");
                        match look_for(context, &intent, next).await? {
                            Looked::Is(outcome) => return Ok(outcome),
                            Looked::Replaced(next) => {
                                intent = *next;
                                continue;
                            }
                            Looked::Unknown(doubt) => doubt,
                        }
                    }
                    Outcome::Unknown(doubt) => doubt,
                }
            }
            Readiness::Send | Readiness::Old => {
                match look_for(context, &intent, intent.next_attempt()).await? {
                    Looked::Is(outcome) => return Ok(outcome),
                    Looked::Replaced(next) => {
                        intent = *next;
                        look = false;
                        continue;
                    }
                    Looked::Unknown(doubt) => doubt,
                }
            }
        };
        tracing::info!(charge_id = %intent.charge_id, attempt = intent.attempt, advice = ?doubt.advice, reason = doubt.message, "the outcome of a charge is unknown");
        look |= doubt.advice == Advice::Look;
        last = doubt.message.clone();
        if !back_off(context, &doubt, tries).await {
            break;
        }
    }
    Ok(ChargeOutcome::Not(match sent {
        Sent::Never => not_sent(&intent),
        Sent::Perhaps => in_doubt(&intent, &last),
    }))
}

/// Whether what a request has made is there: where an earlier one has, it may have been deleted since.
async fn is_kept(context: &ChargeContext, item_id: &str, replayed: bool) -> Result<bool, Doubt> {
    if !replayed {
        return Ok(true);
    }
    if !context.turn().await {
        return Err(Doubt::stopped());
    }
    context.payments.has_item(item_id).await
}

/// What looking for an intent at Stripe has led to.
enum Looked {
    /// It is known what became of it.
    Is(ChargeOutcome),
    /// Stripe does not have it: this is to be sent instead.
    Replaced(Box<Intent>),
    /// It is still not known.
    Unknown(Doubt),
}

/// What became of the intent, if it is at Stripe.
async fn seen(
    context: &ChargeContext,
    intent: &Intent,
) -> Result<Result<Option<ChargeOutcome>, Doubt>, Error> {
    let found = context.payments.find_items(&intent.item.customer, intent.charge_id, &context.pace).await;
    Ok(match found.as_deref() {
        // What else there is of the charge is found when what was replaced is rechecked.
        Ok([item, ..]) if item.amount_minor == intent.item.amount_minor => {
            Ok(Some(succeeded(context, intent, &item.item_id).await?))
        }
        Ok([item, ..]) => Ok(Some(altered(context, intent, &item.item_id).await?)),
        Ok([]) => Ok(None),
        Err(doubt) => Err(doubt.clone()),
    })
}

/// Looks through the customer's items for the charge, and replaces the intent by `next` if it is not there.
async fn look_for(context: &ChargeContext, intent: &Intent, next: Intent) -> Result<Looked, Error> {
    Ok(match seen(context, intent).await? {
        Ok(Some(outcome)) => Looked::Is(outcome),
        Ok(None) => match replace(context, intent, &next).await? {
            true => Looked::Replaced(Box::new(next)),
            false => Looked::Is(ChargeOutcome::Elsewhere),
        },
        Err(doubt) => Looked::Unknown(doubt),
    })
}

/// Waits before the next try; false: there is none in this run.
pub(in crate::app) async fn back_off(context: &ChargeContext, doubt: &Doubt, tries: u32) -> bool {
    if let Some(time) = doubt.retry_after {
        context.pace.pause_all(time);
        if time > LONGEST_PAUSE {
            return false;
        }
    }
    if doubt.advice == Advice::Later {
        return false;
    }
    if doubt.advice == Advice::Again && tries + 1 < MAX_TRIES {
        let time = backoff(tries, &mut rand::rng());
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = context.halt.cancelled() => {}
            () = context.shutdown.cancelled() => {}
        }
    }
    !context.halt.is_cancelled() && !context.shutdown.is_cancelled()
}

async fn succeeded(context: &ChargeContext, intent: &Intent, item_id: &str) -> Result<ChargeOutcome, Error> {
    let made = Made { charge_id: intent.charge_id, attempt: intent.attempt, item_id: item_id.to_owned() };
    if context.together.succeed(&context.pool, made).await? {
        return Ok(ChargeOutcome::Charged);
    }
    let known = {
        let mut connection = db::acquire(&context.pool).await?;
        charges::items(&mut connection, intent.charge_id).await?
    };
    if known.iter().all(|id| id != item_id) {
        tracing::error!(charge_id = %intent.charge_id, item_id, "an attempt that was replaced has an item at Stripe");
        // Also if that was done before this item was made.
        let mut connection = db::acquire(&context.pool).await?;
        rechecks::ask(&mut connection, intent.charge_id, intent.attempt, TimeDelta::zero()).await?;
    }
    Ok(ChargeOutcome::Elsewhere)
}

/// Stripe refused the intent for good. If it may have been sent before, by a process that may have had another key of
/// Stripe's, what that one sent may still take effect: it is rechecked.
async fn refused(
    context: &ChargeContext,
    intent: &Intent,
    before: Sent,
    refusal: Refusal,
) -> Result<ChargeOutcome, Error> {
    let period = intent.period_key();
    let error = AccountError::new(&intent.eco_id, refusal.reason.clone(), refusal.message);
    let mut connection = db::acquire(&context.pool).await?;
    let mut transaction = connection.begin().await?;
    if charges::fail(&mut transaction, intent.charge_id, intent.attempt, &refusal.reason).await? {
        records::set_billed(&mut transaction, &period).await?;
        let reason = ParkReason::Refused(refusal.reason);
        records::park(&mut transaction, &period, Some(&reason), context.untold(Some(&error))).await?;
        if before == Sent::Perhaps {
            rechecks::ask(&mut transaction, intent.charge_id, intent.attempt, RECHECK_AFTER).await?;
        }
        note_failure(&mut transaction, context, &error).await?;
    }
    transaction.commit().await?;
    Ok(ChargeOutcome::Not(error))
}

async fn replace(context: &ChargeContext, intent: &Intent, next: &Intent) -> Result<bool, Error> {
    let mut connection = db::acquire(&context.pool).await?;
    let mut transaction = connection.begin().await?;
    let replaced = charges::replace(&mut transaction, intent, next, context.run_id).await?;
    if replaced
        && next.item.subscription.is_none()
        && let Some(subscription) = &intent.item.subscription
    {
        // It has ended, perhaps, and nobody told us of that, or will.
        stripe_events::look_at(&mut transaction, subscription, &next.key()).await?;
    }
    transaction.commit().await?;
    Ok(replaced)
}

async fn altered(context: &ChargeContext, intent: &Intent, item_id: &str) -> Result<ChargeOutcome, Error> {
    tracing::error!(charge_id = %intent.charge_id, item_id, "Stripe has the charge with another amount");
    let since = {
        let mut connection = db::acquire(&context.pool).await?;
        charges::first_written(&mut connection, intent.charge_id).await?
    };
    let message = format!(
        "Stripe holds charge {} with another amount; it must be reconciled: a repair takes it over from {} on.",
        intent.charge_id,
        (since + RESOLVED_WITHIN).to_rfc3339()
    );
    Ok(ChargeOutcome::Not(AccountError::new(&intent.eco_id, ITEM_DIFFERS, message)))
}

fn not_sent(intent: &Intent) -> AccountError {
    let message = format!(
        "Charge {} was written down and not sent, for the run was stopped; the next run sends it.",
        intent.charge_id
    );
    AccountError::new(&intent.eco_id, "NOT_SENT", message)
}

pub(super) fn in_doubt(intent: &Intent, why: &str) -> AccountError {
    let message = format!(
        "It is not known whether charge {} reached Stripe ({why}); the next run resolves it.",
        intent.charge_id
    );
    AccountError::new(&intent.eco_id, "IN_DOUBT", message)
}
