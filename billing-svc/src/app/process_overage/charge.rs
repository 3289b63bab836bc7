//! One account in a run: the ledger's algorithm.
//!
//! 1. Under the lock of the period's row: what is due less what the ledger holds.
//! 2. The difference is written down as an intent, with its key and exact payload, and committed. A run does this for
//!    some accounts in one transaction.
//! 3. Right before each send the intent and its age are read again, by database time; then it is sent, and
//!    what became of it is recorded.
//! 4. In doubt, the same is sent again while its key lives. Where that cannot help, the customer's items are
//!    looked through; only if the charge is not there is the intent replaced by its next attempt. What was
//!    replaced is rechecked later (see [`super::recheck`]).
//!
//! Every step is committed before the next begins, so that a process may end at any point.

use std::{collections::HashMap, sync::Arc};

use nexus_core::money::{Currency, Micros};
use nexus_kit::db;
use sqlx::{Acquire, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::together::Together;
use crate::{
    domain::{
        charge::{Intent, Readiness, Target},
        overage::{Facts, Next},
        period::{ParkReason, PeriodKey},
        run::{AccountError, AccountResult},
    },
    error::Error,
    payments::{
        Advice, Doubt, Outcome, Payments, Refusal,
        pace::{LONGEST_PAUSE, Pace, backoff},
    },
    store::{
        charges::{self, Made},
        facts, records, run_accounts,
    },
};

/// Sends and searches for one intent within a run; what is still in doubt then is the next run's.
pub(in crate::app) const MAX_TRIES: u32 = 6;

/// What charging an account needs.
#[derive(Clone)]
pub struct ChargeContext {
    /// Connections.
    pub pool: PgPool,
    /// Where items are made.
    pub payments: Arc<dyn Payments>,
    /// How fast.
    pub pace: Arc<Pace>,
    /// The run that intents are written for; `None`: a settlement.
    pub run_id: Option<Uuid>,
    /// Where new charges are put.
    pub target: Target,
    /// Cancelled when the run has lost its lease: nothing more is sent.
    pub halt: CancellationToken,
    /// Cancelled when the server stops: what is in hand is brought to an end, without further tries.
    pub shutdown: CancellationToken,
    /// Statements that charges of the run share.
    pub together: Arc<Together>,
}

impl ChargeContext {
    /// Whether nothing more is to be sent, for one of the two reasons.
    pub fn is_stopped(&self) -> bool {
        self.halt.is_cancelled() || self.shutdown.is_cancelled()
    }
}

/// What is done about a period.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing more.
    Nothing,
    /// This is in doubt since an earlier run, or a correction.
    Resolve(Intent),
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

/// What became of a charge.
enum ChargeOutcome {
    /// Stripe has it.
    Charged,
    /// Another has it in hand, or has brought it to its end: a run and a settlement may meet.
    Elsewhere,
    /// It went no further.
    Not(AccountError),
}

/// Charges what an account owes, period by period, and stops at the first failure.
pub async fn charge_account(context: &ChargeContext, periods: &[PeriodKey]) -> AccountResult {
    charge_account_from(context, periods, None).await
}

/// The same; `first`: what is to be done about its first period, if that was written down before.
#[tracing::instrument(name = "overage.account", skip_all, fields(eco_id = periods.first().map(|p| p.eco_id.as_str())))]
pub(super) async fn charge_account_from(
    context: &ChargeContext,
    periods: &[PeriodKey],
    mut first: Option<Step>,
) -> AccountResult {
    let mut result = AccountResult::default();
    for period in periods {
        if let Err(error) = charge_period(context, period, first.take(), &mut result).await {
            tracing::error!(%error, eco_id = period.eco_id, "an account could not be charged");
            let message =
                "The account could not be charged by a fault of ours; the next run goes on with it.";
            result.error = Some(AccountError::new(&period.eco_id, "INTERNAL", message));
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
    mut first: Option<Step>,
    result: &mut AccountResult,
) -> Result<(), Error> {
    let mut elsewhere = 0;
    loop {
        let step = match first.take() {
            Some(step) => step,
            None => next_steps(context, std::slice::from_ref(period)).await?.pop().unwrap_or(Step::Nothing),
        };
        let (intent, sent, is_last) = match step {
            Step::Nothing => return Ok(()),
            Step::Parked(error) => {
                result.error = error;
                return Ok(());
            }
            Step::Resolve(intent) => (intent, Sent::Perhaps, false),
            // After the last charge of a period it is looked at once more, and settled.
            Step::Send { intent, settling } => (intent, Sent::Never, !settling),
        };
        match carry_out(context, &intent, sent).await? {
            ChargeOutcome::Charged => {
                result.charged = true;
                if intent.item.currency == Currency::USD.as_str() {
                    result.total = Micros(result.total.0.saturating_add(intent.difference.amount.0));
                }
            }
            // What it has left of it is seen by looking once more.
            ChargeOutcome::Elsewhere if elsewhere < MAX_TRIES => {
                elsewhere += 1;
                continue;
            }
            ChargeOutcome::Elsewhere => {
                result.error = Some(in_doubt(&intent, "another has it in hand"));
                return Ok(());
            }
            ChargeOutcome::Not(error) => {
                result.error = Some(error);
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Under the locks of the periods: what is to be done about each, written down.
pub(super) async fn next_steps(context: &ChargeContext, periods: &[PeriodKey]) -> Result<Vec<Step>, Error> {
    let mut connection = db::acquire(&context.pool).await?;
    let mut transaction = connection.begin().await?;
    let mut steps = decide(&mut transaction, periods, context).await?;
    transaction.commit().await?;
    Ok(periods.iter().map(|period| steps.remove(period).unwrap_or(Step::Nothing)).collect())
}

async fn decide(
    db: &mut PgConnection,
    periods: &[PeriodKey],
    context: &ChargeContext,
) -> Result<HashMap<PeriodKey, Step>, Error> {
    let locked = records::lock_all(db, periods).await?;
    let all_facts = facts::read(db, &locked).await?;
    records::upsert(db, &all_facts).await?;
    let (mut steps, mut intents) = (HashMap::new(), Vec::new());
    for facts in &all_facts {
        let period = PeriodKey { eco_id: facts.eco_id.clone(), start: facts.period.start };
        let step = if facts.ledger.pending {
            charges::pending(db, &period).await?.map_or(Step::Nothing, Step::Resolve)
        } else {
            decide_one(db, facts, &period, context).await?
        };
        match &step {
            Step::Nothing => note(db, context, &facts.eco_id).await?,
            Step::Send { intent, .. } => intents.push(intent.clone()),
            Step::Resolve(_) | Step::Parked(_) => {}
        }
        steps.insert(period, step);
    }
    if !intents.is_empty() {
        let charged: Vec<_> = intents.iter().map(Intent::period_key).collect();
        charges::insert_all(db, &intents, context.run_id).await?;
        records::set_billed_all(db, &charged).await?;
    }
    Ok(steps)
}

/// What is to be done about a period in which no charge is in doubt.
async fn decide_one(
    db: &mut PgConnection,
    facts: &Facts,
    period: &PeriodKey,
    context: &ChargeContext,
) -> Result<Step, Error> {
    match facts.next()? {
        Next::Nothing => Ok(Step::Nothing),
        Next::Settle => {
            records::settle(db, period).await?;
            Ok(Step::Nothing)
        }
        Next::Park(reason) => {
            let error = untold_error(db, facts, &reason).await?;
            records::park(db, period, Some(&reason)).await?;
            // Told and parked at once: neither again.
            match &error {
                Some(error) => note_failure(db, context, error).await?,
                None => note(db, context, &facts.eco_id).await?,
            }
            Ok(Step::Parked(error))
        }
        Next::Charge { customer, difference } => {
            if facts.parked.is_some() {
                records::park(db, period, None).await?;
            }
            let intent = Intent::new(facts, customer, difference, &context.target);
            Ok(Step::Send { intent, settling: facts.is_settling() })
        }
    }
}

/// Notes in the run, if there is one, that there was nothing to charge.
async fn note(db: &mut PgConnection, context: &ChargeContext, eco_id: &str) -> sqlx::Result<()> {
    match context.run_id {
        Some(run_id) => run_accounts::note(db, run_id, eco_id).await,
        None => Ok(()),
    }
}

async fn note_failure(
    db: &mut PgConnection,
    context: &ChargeContext,
    error: &AccountError,
) -> sqlx::Result<()> {
    match context.run_id {
        Some(run_id) => run_accounts::fail(db, run_id, error).await,
        None => Ok(()),
    }
}

/// What is told of the account when a period is to be parked; `None`: it was told of another period. To be
/// asked before this one is parked.
pub(super) async fn untold_error(
    db: &mut PgConnection,
    facts: &Facts,
    reason: &ParkReason,
) -> Result<Option<AccountError>, Error> {
    let told =
        *reason == ParkReason::NoStripeCustomer && records::waits_for_customer(db, &facts.eco_id).await?;
    Ok((!told).then(|| facts.park_error(reason)))
}

/// Sends an intent until it is known what became of it, within bounds.
async fn carry_out(context: &ChargeContext, intent: &Intent, mut sent: Sent) -> Result<ChargeOutcome, Error> {
    let mut intent = intent.clone();
    let mut look = false;
    let mut last = "the run was stopped before it could ask".to_owned();
    for tries in 0..MAX_TRIES {
        context.pace.wait().await;
        if context.halt.is_cancelled() {
            break;
        }
        let ready = context.together.ready(&context.pool, intent.charge_id, intent.attempt, context.run_id);
        let readiness = ready.await?;
        let doubt = match readiness {
            Readiness::Gone => return Ok(ChargeOutcome::Elsewhere),
            Readiness::Send if !look => {
                sent = Sent::Perhaps;
                match context.payments.create_invoice_item(&intent.item, &intent.key()).await {
                    Outcome::Succeeded { id } => return succeeded(context, &intent, &id).await,
                    // The draft may have been finalised meanwhile, or be full.
                    Outcome::FailedForGood(refusal) if intent.item.invoice.is_some() => {
                        tracing::info!(charge_id = %intent.charge_id, reason = refusal.reason, "a draft does not take a charge");
                        match look_for(context, &intent, intent.without_draft()).await? {
                            Looked::Is(outcome) => return Ok(outcome),
                            Looked::Replaced(next) => {
                                intent = next;
                                continue;
                            }
                            Looked::Unknown(doubt) => doubt,
                        }
                    }
                    Outcome::FailedForGood(refusal) => return refused(context, &intent, refusal).await,
                    Outcome::Unknown(doubt) => doubt,
                }
            }
            Readiness::Send | Readiness::Old => {
                match look_for(context, &intent, intent.next_attempt()).await? {
                    Looked::Is(outcome) => return Ok(outcome),
                    Looked::Replaced(next) => {
                        intent = next;
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

/// What looking for an intent at Stripe has led to.
enum Looked {
    /// It is known what became of it.
    Is(ChargeOutcome),
    /// Stripe does not have it: this is to be sent instead.
    Replaced(Intent),
    /// It is still not known.
    Unknown(Doubt),
}

/// Looks through the customer's items for the charge, and replaces the intent by `next` if it is not there.
async fn look_for(context: &ChargeContext, intent: &Intent, next: Intent) -> Result<Looked, Error> {
    let found = context.payments.find_items(&intent.item.customer, intent.charge_id, &context.pace).await;
    Ok(match found.as_deref() {
        // What else there is of the charge is found when what was replaced is rechecked.
        Ok([item, ..]) if item.amount_minor == intent.item.amount_minor => {
            Looked::Is(succeeded(context, intent, &item.item_id).await?)
        }
        Ok([item, ..]) => Looked::Is(altered(intent, &item.item_id)),
        Ok([]) => match replace(context, intent, &next).await? {
            true => Looked::Replaced(next),
            false => Looked::Is(ChargeOutcome::Elsewhere),
        },
        Err(doubt) => Looked::Unknown(doubt.clone()),
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
        // The recheck of what was replaced finds this item.
        tracing::error!(charge_id = %intent.charge_id, item_id, "an attempt that was replaced has an item at Stripe");
    }
    Ok(ChargeOutcome::Elsewhere)
}

async fn refused(context: &ChargeContext, intent: &Intent, refusal: Refusal) -> Result<ChargeOutcome, Error> {
    let period = intent.period_key();
    let error = AccountError::new(&intent.eco_id, refusal.reason.clone(), refusal.message);
    let mut connection = db::acquire(&context.pool).await?;
    let mut transaction = connection.begin().await?;
    if charges::fail(&mut transaction, intent.charge_id, intent.attempt, &refusal.reason).await? {
        records::set_billed(&mut transaction, &period).await?;
        let reason = ParkReason::Refused(refusal.reason);
        records::park(&mut transaction, &period, Some(&reason)).await?;
        note_failure(&mut transaction, context, &error).await?;
    }
    transaction.commit().await?;
    Ok(ChargeOutcome::Not(error))
}

async fn replace(context: &ChargeContext, intent: &Intent, next: &Intent) -> Result<bool, Error> {
    let mut connection = db::acquire(&context.pool).await?;
    let mut transaction = connection.begin().await?;
    let replaced = charges::replace(&mut transaction, intent, next, context.run_id).await?;
    transaction.commit().await?;
    Ok(replaced)
}

fn altered(intent: &Intent, item_id: &str) -> ChargeOutcome {
    tracing::error!(charge_id = %intent.charge_id, item_id, "Stripe has the charge with another amount");
    ChargeOutcome::Not(AccountError::new(
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
    AccountError::new(&intent.eco_id, "NOT_SENT", message)
}

fn in_doubt(intent: &Intent, why: &str) -> AccountError {
    let message = format!(
        "It is not known whether charge {} reached Stripe ({why}); the next run resolves it.",
        intent.charge_id
    );
    AccountError::new(&intent.eco_id, "IN_DOUBT", message)
}
