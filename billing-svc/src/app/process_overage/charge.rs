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

use super::{
    send::{ChargeOutcome, ITEM_DIFFERS, MAX_TRIES, Sent, carry_out, in_doubt},
    together::Together,
};
use crate::{
    domain::{
        charge::{Intent, Target},
        overage::{Facts, Next},
        period::{ParkReason, PeriodKey},
        run::{AccountError, AccountResult},
    },
    error::Error,
    payments::{Payments, pace::Pace},
    store::{charges, facts, identity, records, run_accounts, withheld},
};

/// Why nothing is charged on a server that is not known, as a word.
pub(in crate::app) const RECONCILE_REQUIRED: &str = "RECONCILE_REQUIRED";

/// Why an account is not charged that a reconciliation could not compare, as a word.
const ACCOUNT_WITHHELD: &str = "ACCOUNT_WITHHELD";

/// Whether a repeat may help: the other reasons need a person, or something that a run sees.
pub(in crate::app) fn passes(error: &AccountError) -> bool {
    matches!(error.reason.as_str(), "IN_DOUBT" | "NOT_SENT" | "INTERNAL" | RECONCILE_REQUIRED)
}

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
    /// Cancelled when the server stops: what was sent is brought to an end, without further tries; nothing else is sent.
    pub shutdown: CancellationToken,
    /// Statements that charges of the run share.
    pub together: Arc<Together>,
}

impl ChargeContext {
    /// Whether nothing more is to be sent, for one of the two reasons.
    pub fn is_stopped(&self) -> bool {
        self.halt.is_cancelled() || self.shutdown.is_cancelled()
    }

    /// Waits until Stripe may be called; false: nothing more is to be sent.
    pub async fn turn(&self) -> bool {
        tokio::select! {
            biased;
            () = self.halt.cancelled() => false,
            // Nothing is begun any more, and a pause may be long.
            () = self.shutdown.cancelled() => false,
            () = self.pace.wait() => true,
        }
    }

    /// What is left to the next run to tell: outside of runs there is no list that it could be on.
    pub(super) fn untold<'e>(&self, error: Option<&'e AccountError>) -> Option<&'e AccountError> {
        error.filter(|_| self.run_id.is_none())
    }
}

pub(super) fn withheld_error(eco_id: &str) -> AccountError {
    let message = format!(
        "Stripe has charges of {eco_id} that are not in the ledger: it is charged once a reconciliation of all accounts has taken them in."
    );
    AccountError::new(eco_id, ACCOUNT_WITHHELD, message)
}

/// What is done about a period.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing more.
    Nothing,
    /// This is in doubt since an earlier run, or a correction.
    Resolve(Intent),
    /// This was just written down; `more`: the period is to be looked at again, since it is to be settled, or since
    /// this is a part of what it owes.
    Send { intent: Intent, more: bool },
    /// It cannot be charged; `None`: that was said before.
    Parked(Option<AccountError>),
}

/// Charges what an account owes, period by period, and stops at the first failure; only what a person has to look at keeps
/// no later period from being charged.
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
    let mut stuck = None;
    for period in periods {
        if let Err(error) = charge_period(context, period, first.take(), &mut result).await {
            tracing::error!(%error, eco_id = period.eco_id, "an account could not be charged");
            result.error = Some(match error {
                Error::ReconcileRequired => {
                    AccountError::new(&period.eco_id, RECONCILE_REQUIRED, error.to_string())
                }
                _ => AccountError::new(
                    &period.eco_id,
                    "INTERNAL",
                    "The account could not be charged by a fault of ours; the next run goes on with it.",
                ),
            });
        }
        match result.error.take_if(|error| error.reason == ITEM_DIFFERS) {
            Some(error) => stuck = stuck.or(Some(error)),
            None if result.error.is_some() => break,
            None => {}
        }
    }
    result.error = result.error.or(stuck);
    result
}

/// Resolves what is in doubt, then makes one new charge at most, unless Stripe takes what is owed in parts alone: usage
/// that comes in meanwhile is the next run's.
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
            Step::Send { intent, more } => (intent, Sent::Never, !more),
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
    // Another may have taken over since the run began.
    if !identity::is_known(db).await? {
        return Err(Error::ReconcileRequired);
    }
    let locked = records::lock_all(db, periods).await?;
    let all_facts = facts::read(db, &locked).await?;
    records::upsert(db, &all_facts).await?;
    let eco_ids: Vec<&str> = locked.iter().map(|period| period.eco_id.as_str()).collect();
    let withheld = withheld::among(db, &eco_ids).await?;
    let (mut steps, mut intents) = (HashMap::new(), Vec::new());
    for facts in &all_facts {
        let period = PeriodKey { eco_id: facts.eco_id.clone(), start: facts.period.start };
        let step = if facts.ledger.pending {
            charges::pending(db, &period).await?.map_or(Step::Nothing, Step::Resolve)
        } else {
            decide_one(db, facts, &period, context, withheld.contains(&facts.eco_id)).await?
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
    is_withheld: bool,
) -> Result<Step, Error> {
    match facts.next()? {
        Next::Nothing => Ok(Step::Nothing),
        Next::Settle => {
            records::settle(db, period).await?;
            Ok(Step::Nothing)
        }
        Next::Park(reason) => {
            let error = untold_error(db, facts, &reason).await?;
            records::park(db, period, Some(&reason), context.untold(error.as_ref())).await?;
            // Told and parked at once: neither again.
            match &error {
                Some(error) => note_failure(db, context, error).await?,
                None => note(db, context, &facts.eco_id).await?,
            }
            Ok(Step::Parked(error))
        }
        Next::Charge { .. } if is_withheld => Ok(Step::Parked(Some(withheld_error(&facts.eco_id)))),
        Next::Charge { customer, difference } => {
            if facts.parked.is_some() {
                records::park(db, period, None, None).await?;
            }
            let intent = Intent::new(facts, customer, difference, &context.target);
            Ok(Step::Send { intent, more: facts.is_settling() || facts.is_part(&difference)? })
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

pub(super) async fn note_failure(
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
