//! Charges of which an attempt was replaced, once more.
//!
//! A request that was given up may still take effect, and then the charge is at Stripe twice. Some time after
//! the last attempt the customer's items of the charge are listed again. An item that the ledger does not
//! have is deleted while it is on no invoice. One that is on an invoice goes into the ledger, and so does a
//! correction, which is then sent as every charge is. Only a list with just the ledger's items ends it.
//!
//! Like a charge, it may be cut off at any point: the next look lists again. Runs do it, and a worker between them, so that
//! what came late is taken back before an invoice takes it. Where both meet they do the same.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use nexus_kit::db;
use sqlx::Acquire;

use super::{
    ChargeContext, charge_account,
    send::{MAX_TRIES, back_off},
};
use crate::{
    domain::{
        basis::Basis,
        books::RESOLVED_WITHIN,
        charge::Intent,
        overage::{Difference, Facts, Ledger},
        run::AccountError,
    },
    error::Error,
    payments::{Advice, Doubt, FoundItem, Place},
    store::{
        charges, facts, identity,
        rechecks::{self, Seen},
        records,
    },
};

/// What one look at a charge has led to.
enum Look {
    /// Stripe has what the ledger has.
    Right,
    /// Something was taken back: look again.
    Again,
    /// It is not known what Stripe has.
    Unknown(Doubt),
    /// A person has to look at it.
    Wrong(AccountError),
}

/// Accounts that are read at once.
const AT_ONCE: i64 = 100;

/// How long the worker leaves an account alone that cannot be rechecked: a person has to look at it, or Stripe is away.
const LEFT_FOR: Duration = Duration::from_secs(3600);

/// Rechecks what is due, until the context's server stops. Dropped, it ends where it is.
pub async fn rechecker(context: ChargeContext, every: Duration) {
    let mut left = HashMap::new();
    while context.shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        left.retain(|_, since: &mut Instant| since.elapsed() < LEFT_FOR);
        if let Err(error) = recheck_due(&context, &mut left).await {
            tracing::warn!(%error, "charges could not be rechecked");
        }
    }
}

async fn recheck_due(context: &ChargeContext, left: &mut HashMap<String, Instant>) -> Result<(), Error> {
    let mut after = String::new();
    loop {
        let page = {
            let mut connection = db::acquire(&context.pool).await?;
            if !identity::is_known(&mut connection).await? {
                return Ok(());
            }
            rechecks::accounts(&mut connection, None, &after, AT_ONCE).await?
        };
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(last);
        for eco_id in page {
            if context.is_stopped() {
                return Ok(());
            }
            if left.contains_key(&eco_id) {
                continue;
            }
            if let Some(reason) = recheck_and_correct(context, &eco_id).await {
                tracing::warn!(eco_id, reason, "a charge is to be rechecked again");
                left.insert(eco_id, Instant::now());
            }
        }
    }
}

/// Rechecks an account, and sends the corrections that come of it; returns why it is not done.
async fn recheck_and_correct(context: &ChargeContext, eco_id: &str) -> Option<String> {
    let done = async {
        if let Some(error) = recheck_account(context, eco_id).await? {
            return Ok(Some(error));
        }
        let in_doubt = {
            let mut connection = db::acquire(&context.pool).await?;
            charges::periods_in_doubt(&mut connection, eco_id).await?
        };
        Ok::<_, Error>(charge_account(context, &in_doubt).await.error)
    };
    match done.await {
        Ok(error) => error.map(|error| error.reason),
        Err(error) => Some(error.to_string()),
    }
}

/// Rechecks the charges of an account that are due, one after the other; returns why one of them is not done.
pub(super) async fn recheck_account(
    context: &ChargeContext,
    eco_id: &str,
) -> Result<Option<AccountError>, Error> {
    let due = {
        let mut connection = db::acquire(&context.pool).await?;
        rechecks::due(&mut connection, eco_id).await?
    };
    let mut first = None;
    for replaced in due {
        let error = recheck_charge(context, &replaced).await;
        first = first.or(error);
    }
    Ok(first)
}

#[tracing::instrument(name = "overage.recheck", skip_all, fields(eco_id = replaced.eco_id, charge_id = %replaced.charge_id))]
async fn recheck_charge(context: &ChargeContext, replaced: &Intent) -> Option<AccountError> {
    match look_until_right(context, replaced).await {
        Ok(error) => error,
        Err(error) => {
            tracing::error!(%error, eco_id = replaced.eco_id, "a charge could not be rechecked");
            let message = "A charge could not be rechecked by a fault of ours; the next run goes on with it.";
            Some(AccountError::new(&replaced.eco_id, "INTERNAL", message))
        }
    }
}

async fn look_until_right(context: &ChargeContext, replaced: &Intent) -> Result<Option<AccountError>, Error> {
    let mut last = "the run was stopped".to_owned();
    for tries in 0..MAX_TRIES {
        if context.is_stopped() || !context.turn().await {
            break;
        }
        match look(context, replaced).await? {
            Look::Right => return Ok(None),
            Look::Wrong(error) => return Ok(Some(error)),
            Look::Again => last = "it was changing".to_owned(),
            Look::Unknown(doubt) => {
                last.clone_from(&doubt.message);
                if !back_off(context, &doubt, tries).await {
                    break;
                }
            }
        }
    }
    let message = format!(
        "It is not known whether Stripe holds charge {} twice ({last}); the next run looks again.",
        replaced.charge_id
    );
    Ok(Some(AccountError::new(&replaced.eco_id, "IN_DOUBT", message)))
}

/// Lists the charge's items, and takes back what the ledger does not have.
async fn look(context: &ChargeContext, replaced: &Intent) -> Result<Look, Error> {
    let seen = {
        let mut connection = db::acquire(&context.pool).await?;
        rechecks::seen(&mut connection, replaced.charge_id).await?
    };
    let listed =
        context.payments.find_items(&replaced.item.customer, replaced.charge_id, &context.pace).await;
    let mut listed = match listed {
        Ok(listed) => listed,
        Err(doubt) => return Ok(Look::Unknown(doubt)),
    };
    let is_ours = |item: &FoundItem| seen.items.contains(&item.item_id);
    if listed.iter().any(|item| item.is_invoiced && !is_ours(item)) {
        let places = match context.payments.places(&replaced.item.customer, &context.pace).await {
            Ok(places) => places,
            Err(doubt) => return Ok(Look::Unknown(doubt)),
        };
        // Nobody is asked for what is on a void invoice: there is nothing to take back.
        listed.retain(|item| is_ours(item) || places.get(&item.item_id) != Some(&Place::Void));
    }
    let mut connection = db::acquire(&context.pool).await?;
    let ours = charges::items(&mut connection, replaced.charge_id).await?;
    // What was listed is of neither: an item may have been made meanwhile, or taken back.
    if ours != seen.items {
        return Ok(Look::Again);
    }
    if let Some(missing) = ours.iter().find(|id| listed.iter().all(|item| item.item_id != **id)) {
        return Ok(Look::Wrong(item_missing(replaced, missing, &seen)));
    }
    let extra: Vec<_> = listed.iter().filter(|item| !ours.contains(&item.item_id)).collect();
    if extra.is_empty() {
        rechecks::clear(&mut connection, replaced.charge_id, &seen).await?;
        return Ok(Look::Right);
    }
    drop(connection);
    if let Some(altered) = extra.iter().find(|item| item.amount_minor != replaced.item.amount_minor) {
        return Ok(Look::Wrong(item_differs(replaced, altered, &seen)));
    }
    // An invoiced one takes a number of the ledger: one at a time.
    if let Some(invoiced) = extra.iter().find(|item| item.is_invoiced) {
        return adopt(context, replaced, invoiced).await;
    }
    for item in extra {
        if !context.turn().await || context.is_stopped() {
            break;
        }
        tracing::warn!(charge_id = %replaced.charge_id, item_id = item.item_id, "deleting a second item of a charge");
        if let Err(doubt) = context.payments.delete_item(&item.item_id).await {
            return Ok(Look::Unknown(doubt));
        }
    }
    Ok(Look::Again)
}

/// Takes an item that is on an invoice into the ledger, with the intent of a correction.
async fn adopt(context: &ChargeContext, wrong: &Intent, extra: &FoundItem) -> Result<Look, Error> {
    let period = wrong.period_key();
    let mut connection = db::acquire(&context.pool).await?;
    let mut transaction = connection.begin().await?;
    records::lock(&mut transaction, &period).await?;
    if charges::items(&mut transaction, wrong.charge_id).await?.contains(&extra.item_id) {
        return Ok(Look::Again);
    }
    let Some(facts) = facts::read(&mut transaction, std::slice::from_ref(&period)).await?.pop() else {
        return Ok(later("the account is not there"));
    };
    if facts.ledger.pending {
        return Ok(later("another charge of the period is in doubt"));
    }
    let units = facts.ledger.units;
    let adopted = Intent {
        attempt: charges::last_attempt(&mut transaction, wrong.charge_id).await? + 1,
        sequence: facts.ledger.last_sequence + 1,
        difference: Difference { units_from: units, units_to: units, ..wrong.difference },
        basis: Some(Basis::Duplicate { item_micros: wrong.difference.amount.0 }),
        ..wrong.clone()
    };
    charges::insert(&mut transaction, &adopted, context.run_id).await?;
    charges::succeed(&mut transaction, adopted.charge_id, adopted.attempt, &extra.item_id).await?;
    let ledger = Ledger { last_sequence: adopted.sequence, ..facts.ledger };
    let correction = Intent::correction(&Facts { ledger, ..facts }, wrong);
    charges::insert(&mut transaction, &correction, context.run_id).await?;
    records::set_billed(&mut transaction, &period).await?;
    records::reopen(&mut transaction, &period).await?;
    transaction.commit().await?;
    tracing::warn!(charge_id = %wrong.charge_id, item_id = extra.item_id, correction = %correction.charge_id, "correcting a charge that was invoiced twice");
    Ok(Look::Again)
}

fn later(message: &str) -> Look {
    Look::Unknown(Doubt { advice: Advice::Later, retry_after: None, message: message.to_owned() })
}

/// From when on a reconciliation does something about it: before, it is a recheck's.
fn mended(seen: &Seen) -> String {
    match seen.last_due() {
        Some(due) => format!("a repair mends it from {} on", (due + RESOLVED_WITHIN).to_rfc3339()),
        None => "a repair mends it".to_owned(),
    }
}

fn item_missing(intent: &Intent, item_id: &str, seen: &Seen) -> AccountError {
    let message = format!(
        "Stripe no longer holds item {item_id} of charge {}; it must be reconciled: {}.",
        intent.charge_id,
        mended(seen)
    );
    AccountError::new(&intent.eco_id, "ITEM_MISSING", message)
}

fn item_differs(intent: &Intent, item: &FoundItem, seen: &Seen) -> AccountError {
    let message = format!(
        "Stripe holds a second item {} of charge {} with another amount; it must be reconciled: {}.",
        item.item_id,
        intent.charge_id,
        mended(seen)
    );
    AccountError::new(&intent.eco_id, "ITEM_DIFFERS", message)
}
