//! One account in a run: the ledger's algorithm.
//!
//! 1. Under the lock of the period's row: what is due less what the ledger holds.
//! 2. The difference is written down as an intent, with its key and exact payload, and committed.
//! 3. Right before each send the intent and its age are read again, by database time; then it is sent, and
//!    what became of it is recorded.
//! 4. In doubt, the same is sent again while its key lives. Where that cannot help, the customer's items are
//!    looked through; only if the charge is not there is the intent replaced by its next attempt. What was
//!    replaced is rechecked later (see [`super::recheck`]).
//!
//! Every step is committed before the next begins, so that a process may end at any point.

use std::sync::Arc;

use nexus_core::money::{Currency, Micros};
use sqlx::{Acquire, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{
        charge::Intent,
        run::{AccountError, AccountResult},
    },
    error::Error,
    payments::{
        Advice, Doubt, Outcome, Payments, Refusal, Search,
        pace::{LONGEST_REST, Pace, backoff},
    },
    store::{
        charges::{self, Readiness},
        facts::{self, PeriodKey},
        records,
    },
};

/// Sends and searches for one intent within a run; what is still in doubt then is the next run's.
pub(super) const MAX_TRIES: u32 = 6;

/// What charging an account needs.
#[derive(Clone)]
pub struct ChargeContext {
    /// Connections.
    pub pool: PgPool,
    /// Where items are made.
    pub payments: Arc<dyn Payments>,
    /// How fast.
    pub pace: Arc<Pace>,
    /// The run that intents are written for.
    pub run_id: Uuid,
    /// Cancelled when the run has lost its lease: nothing more is sent.
    pub halt: CancellationToken,
    /// Cancelled when the server stops: what is in hand is brought to an end, without further tries.
    pub shutdown: CancellationToken,
}

/// What is to be done about a period.
enum Step {
    /// Nothing is due.
    Nothing,
    /// This is in doubt since an earlier run, or a correction; `parked`: the period takes no other charge.
    Resolve { intent: Intent, parked: bool },
    /// This was just written down; `settling`: in a period that takes no more usage.
    Send { intent: Intent, settling: bool },
    /// It cannot be charged; `None`: that was said before.
    Parked(Option<AccountError>),
}

/// Whether an intent may be at Stripe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Never,
    Perhaps,
}

/// What became of an intent.
enum Settled {
    /// Stripe has it.
    Charged,
    /// It went no further.
    Not(AccountError),
}

/// Charges what an account owes, period by period, and stops at the first failure.
#[tracing::instrument(name = "overage.account", skip_all, fields(eco_id = periods.first().map(|p| p.0.as_str())))]
pub async fn charge_account(context: &ChargeContext, periods: &[PeriodKey]) -> AccountResult {
    let mut result = AccountResult::default();
    for period in periods {
        if let Err(error) = charge_period(context, period, &mut result).await {
            tracing::error!(%error, eco_id = period.0, "an account could not be charged");
            let message =
                "The account could not be charged by a fault of ours; the next run goes on with it.";
            result.error = Some(failure(&period.0, "INTERNAL", message));
        }
        if result.error.is_some() {
            break;
        }
    }
    result
}

/// Resolves what is in doubt, then makes one new charge at most: usage that comes in meanwhile is the next
/// run's.
async fn charge_period(
    context: &ChargeContext,
    period: &PeriodKey,
    result: &mut AccountResult,
) -> Result<(), Error> {
    loop {
        let (intent, sent, is_last) = match next_step(context, period).await? {
            Step::Nothing => return Ok(()),
            Step::Parked(error) => {
                result.error = error;
                return Ok(());
            }
            Step::Resolve { intent, parked } => (intent, Sent::Perhaps, parked),
            // After the last charge of a period it is looked at once more, and settled.
            Step::Send { intent, settling } => (intent, Sent::Never, !settling),
        };
        match carry_out(context, &intent, sent).await? {
            Settled::Charged => {
                result.charged = true;
                if intent.item.currency == Currency::USD.as_str() {
                    result.total = Micros(result.total.0.saturating_add(intent.difference.amount.0));
                }
            }
            Settled::Not(error) => {
                result.error = Some(error);
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Under the lock of the period: what is to be done, written down.
async fn next_step(context: &ChargeContext, period: &PeriodKey) -> Result<Step, Error> {
    let mut connection = context.pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    if !records::lock(&mut transaction, period).await? {
        return Ok(Step::Nothing);
    }
    let step = decide(&mut transaction, period, context.run_id).await?;
    transaction.commit().await?;
    Ok(step)
}

async fn decide(db: &mut PgConnection, period: &PeriodKey, run_id: Uuid) -> Result<Step, Error> {
    let Some(facts) = facts::read(db, std::slice::from_ref(period)).await?.pop() else {
        return Ok(Step::Nothing);
    };
    records::upsert(db, std::slice::from_ref(&facts)).await?;
    if facts.ledger.pending {
        let pending = charges::pending(db, period).await?;
        let parked = facts.parked_reason.is_some();
        return Ok(pending.map_or(Step::Nothing, |intent| Step::Resolve { intent, parked }));
    }
    if facts.is_unpriced()? {
        return park(db, period, Park::NoPrice(facts.currency)).await;
    }
    let Some(difference) = facts.difference()? else {
        if facts.is_settling() {
            records::settle(db, period).await?;
        }
        return Ok(Step::Nothing);
    };
    let Some(customer) = &facts.stripe_customer_id else {
        return park(db, period, Park::NoCustomer).await;
    };
    let intent = Intent::new(&facts, customer, difference);
    charges::insert(db, &intent, run_id).await?;
    records::set_billed(db, period).await?;
    if facts.parked_reason.is_some() {
        records::park(db, period, None).await?;
    }
    Ok(Step::Send { intent, settling: facts.is_settling() })
}

/// Why a period is parked before anything was sent.
enum Park {
    NoCustomer,
    NoPrice(Currency),
}

async fn park(db: &mut PgConnection, period: &PeriodKey, why: Park) -> Result<Step, Error> {
    let eco_id = &period.0;
    let (error, said_before) = match why {
        Park::NoCustomer => {
            let message = format!("No Stripe customer ID found for {eco_id}");
            let said = records::waits_for_customer(db, eco_id).await?;
            (failure(eco_id, records::NO_STRIPE_CUSTOMER, message), said)
        }
        Park::NoPrice(currency) => {
            let message = format!("The plan of {eco_id} has no price in {currency}");
            (failure(eco_id, records::NO_PRICE_IN_CURRENCY, message), false)
        }
    };
    records::park(db, period, Some(&error.reason)).await?;
    Ok(Step::Parked((!said_before).then_some(error)))
}

/// Sends an intent until it is known what became of it, within bounds.
async fn carry_out(context: &ChargeContext, intent: &Intent, mut sent: Sent) -> Result<Settled, Error> {
    let mut intent = intent.clone();
    let mut look = false;
    let mut last = "the run was stopped before it could ask".to_owned();
    for tries in 0..MAX_TRIES {
        context.pace.wait().await;
        if context.halt.is_cancelled() {
            break;
        }
        let readiness = {
            let mut connection = context.pool.acquire().await?;
            charges::ready(&mut connection, intent.charge_id, intent.attempt).await?
        };
        let doubt = match readiness {
            Readiness::Gone => return Ok(Settled::Not(in_doubt(&intent, "another run has taken it over"))),
            Readiness::Send if !look => {
                sent = Sent::Perhaps;
                match context.payments.create_invoice_item(&intent.item, &intent.key()).await {
                    Outcome::Succeeded { item_id } => return succeeded(context, &intent, &item_id).await,
                    Outcome::FailedForGood(refusal) => return refused(context, &intent, refusal).await,
                    Outcome::Unknown(doubt) => doubt,
                }
            }
            Readiness::Send | Readiness::Old => {
                match context.payments.find_item(&intent.item.customer, intent.charge_id, &context.pace).await
                {
                    Search::Found { item_id, amount_minor } if amount_minor == intent.item.amount_minor => {
                        return succeeded(context, &intent, &item_id).await;
                    }
                    Search::Found { item_id, .. } => return Ok(altered(&intent, &item_id)),
                    Search::Absent => match replace(context, &intent).await? {
                        Some(next) => {
                            intent = next;
                            look = false;
                            continue;
                        }
                        None => return Ok(Settled::Not(in_doubt(&intent, "another run has taken it over"))),
                    },
                    Search::Unknown(doubt) => doubt,
                }
            }
        };
        tracing::info!(charge_id = %intent.charge_id, attempt = intent.attempt, advice = ?doubt.advice, reason = doubt.message, "the outcome of a charge is unknown");
        look |= doubt.advice == Advice::Look;
        last = doubt.message.clone();
        if !rest(context, &doubt, tries).await {
            break;
        }
    }
    Ok(Settled::Not(match sent {
        Sent::Never => not_sent(&intent),
        Sent::Perhaps => in_doubt(&intent, &last),
    }))
}

/// Waits before the next try; false: there is none in this run.
pub(super) async fn rest(context: &ChargeContext, doubt: &Doubt, tries: u32) -> bool {
    if let Some(time) = doubt.retry_after {
        context.pace.rest(time);
        if time > LONGEST_REST {
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

async fn succeeded(context: &ChargeContext, intent: &Intent, item_id: &str) -> Result<Settled, Error> {
    let mut connection = context.pool.acquire().await?;
    if charges::succeed(&mut connection, intent.charge_id, intent.attempt, item_id).await? {
        Ok(Settled::Charged)
    } else {
        // The recheck of what was replaced finds this item.
        tracing::error!(charge_id = %intent.charge_id, item_id, "an attempt that was replaced has an item at Stripe");
        Ok(Settled::Not(in_doubt(intent, "another run has taken it over")))
    }
}

async fn refused(context: &ChargeContext, intent: &Intent, refusal: Refusal) -> Result<Settled, Error> {
    let period = period_key(intent);
    let mut connection = context.pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    if charges::fail(&mut transaction, intent.charge_id, intent.attempt, &refusal.reason).await? {
        records::set_billed(&mut transaction, &period).await?;
        records::park(&mut transaction, &period, Some(&refusal.reason)).await?;
    }
    transaction.commit().await?;
    Ok(Settled::Not(failure(&intent.eco_id, &refusal.reason, refusal.message)))
}

async fn replace(context: &ChargeContext, intent: &Intent) -> Result<Option<Intent>, Error> {
    let mut connection = context.pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    let next = charges::replace(&mut transaction, intent, context.run_id).await?;
    transaction.commit().await?;
    Ok(next)
}

pub(super) fn period_key(intent: &Intent) -> PeriodKey {
    (intent.eco_id.clone(), intent.period.start)
}

fn altered(intent: &Intent, item_id: &str) -> Settled {
    tracing::error!(charge_id = %intent.charge_id, item_id, "Stripe has the charge with another amount");
    Settled::Not(failure(
        &intent.eco_id,
        "ITEM_DIFFERS",
        format!("Stripe holds charge {} with another amount; it must be reconciled.", intent.charge_id),
    ))
}

fn not_sent(intent: &Intent) -> AccountError {
    let message = format!(
        "Charge {} was written down and not sent, for the run was stopped; the next run sends it.",
        intent.charge_id
    );
    failure(&intent.eco_id, "NOT_SENT", message)
}

fn in_doubt(intent: &Intent, why: &str) -> AccountError {
    let message = format!(
        "It is not known whether charge {} reached Stripe ({why}); the next run resolves it.",
        intent.charge_id
    );
    failure(&intent.eco_id, "IN_DOUBT", message)
}

pub(super) fn failure(eco_id: &str, reason: &str, message: impl Into<String>) -> AccountError {
    AccountError { eco_id: eco_id.to_owned(), reason: reason.to_owned(), message: message.into() }
}
