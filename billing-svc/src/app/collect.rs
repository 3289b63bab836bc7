//! One invoice for what an account was charged and no other invoice takes, after its subscription at Stripe has ended, or
//! after a period's final settlement where it never had one.
//!
//! A charge is looked for until its item is known to be on a final invoice: what is on a draft, or on a void invoice, is
//! looked for again by the next run.
//!
//! The items are made before, as every charge is, and are pending. Here an empty draft is made, filled with those of
//! them that are pending still, and finalised, to be collected. It is written down before anything is sent, and each
//! step is kept before the next: who comes after a crash goes on with the same keys, or looks at Stripe how far it came.

use std::collections::{BTreeSet, HashMap};

use nexus_kit::db;
use sqlx::{Acquire, PgConnection};

use crate::{
    app::process_overage::{ChargeContext, MAX_TRIES, back_off},
    domain::{
        run::AccountError,
        settlement::{MAX_ITEMS, Settlement, Stage},
    },
    error::Error,
    payments::{Advice, Doubt, Outcome, Place},
    store::{
        open_charges,
        settlements::{self, Stranded},
    },
};

/// Invoices that are made for an account at once, at most: each takes some hundred items.
const MAX_INVOICES: usize = 8;

/// What a step has led to.
enum Step {
    /// This far.
    Kept(Settlement),
    /// This far, since Stripe refused what was asked; the reason.
    Refused(Settlement, String),
    /// The invoice is finalised.
    Done,
    /// It is not known.
    Unknown(Doubt),
    /// It goes no further until a person has looked at it.
    Stuck(String),
}

/// Collects what is stranded; returns why it is not done.
#[tracing::instrument(name = "settlement.collect", skip_all, fields(eco_id))]
pub async fn run(context: &ChargeContext, eco_id: &str) -> Result<Option<AccountError>, Error> {
    for _ in 0..MAX_INVOICES {
        let settlement = match next(context, eco_id).await? {
            Ok(Some(settlement)) => settlement,
            Ok(None) => return Ok(None),
            Err(doubt) => {
                let message =
                    format!("It is not known what no invoice takes ({}); a repeat goes on.", doubt.message);
                return Ok(Some(AccountError::new(eco_id, "IN_DOUBT", message)));
            }
        };
        let id = settlement.settlement_id;
        if let Some(error) = carry_out(context, settlement).await? {
            let mut connection = db::acquire(&context.pool).await?;
            settlements::fail(&mut connection, id, &error.reason).await?;
            return Ok(Some(error));
        }
    }
    Ok(None)
}

/// The settlement to go on with, or a new one; `None`: nothing is stranded and pending.
async fn next(context: &ChargeContext, eco_id: &str) -> Result<Result<Option<Settlement>, Doubt>, Error> {
    let stranded = {
        let mut connection = db::acquire(&context.pool).await?;
        if let Some(open) = settlements::open(&mut connection, eco_id).await? {
            return Ok(Ok(Some(open)));
        }
        settlements::stranded(&mut connection, eco_id).await?
    };
    let customers: BTreeSet<&str> = stranded.iter().map(|charge| charge.customer.as_str()).collect();
    for customer in customers {
        let places = match look(context, eco_id, customer).await? {
            Ok(places) => places,
            Err(doubt) => return Ok(Err(doubt)),
        };
        let is_pending = |charge: &&Stranded| {
            charge.customer == customer && places.get(&charge.item_id) == Some(&Place::Pending)
        };
        if let Some(first) = stranded.iter().find(is_pending) {
            let mut connection = db::acquire(&context.pool).await?;
            let mut transaction = connection.begin().await?;
            settlements::insert(&mut transaction, eco_id, first).await?;
            let open = settlements::open(&mut transaction, eco_id).await?;
            transaction.commit().await?;
            return Ok(Ok(open));
        }
    }
    Ok(Ok(None))
}

/// Where a customer's items are. Those that are on final invoices are not looked for again.
async fn look(
    context: &ChargeContext,
    eco_id: &str,
    customer: &str,
) -> Result<Result<HashMap<String, Place>, Doubt>, Error> {
    let mut tries = 0;
    let places = loop {
        if !context.turn().await {
            return Ok(Err(Doubt::stopped()));
        }
        match context.payments.places(customer, &context.pace).await {
            Ok(places) => break places,
            Err(doubt) => {
                tries += 1;
                if !back_off(context, &doubt, tries - 1).await || tries >= MAX_TRIES {
                    return Ok(Err(doubt));
                }
            }
        }
    };
    let is_final = |(id, place): (&String, &Place)| (*place == Place::Final).then(|| id.clone());
    let invoiced: Vec<String> = places.iter().filter_map(is_final).collect();
    let mut connection = db::acquire(&context.pool).await?;
    open_charges::set_invoiced(&mut connection, eco_id, &invoiced).await?;
    Ok(Ok(places))
}

/// Stranded items that are pending, in the order of their charges.
async fn pending(
    context: &ChargeContext,
    settlement: &Settlement,
) -> Result<Result<Vec<String>, Doubt>, Error> {
    let customer = &settlement.invoice.customer;
    let places = match context.payments.places(customer, &context.pace).await {
        Ok(places) => places,
        Err(doubt) => return Ok(Err(doubt)),
    };
    let mut connection = db::acquire(&context.pool).await?;
    let ours =
        settlements::items(&mut connection, &settlement.eco_id, customer, settlement.subscription()).await?;
    Ok(Ok(ours.into_iter().filter(|id| places.get(id) == Some(&Place::Pending)).collect()))
}

async fn carry_out(
    context: &ChargeContext,
    mut settlement: Settlement,
) -> Result<Option<AccountError>, Error> {
    let mut last = "the server was stopped".to_owned();
    let mut refused = None;
    let mut tries = 0;
    while tries < MAX_TRIES && context.turn().await {
        let step = match settlement.stage() {
            Stage::Create => create(context, &settlement).await?,
            Stage::Fill => fill(context, &settlement).await?,
            Stage::Finalize => finalize(context, &settlement).await?,
        };
        match step {
            Step::Done => return Ok(None),
            Step::Kept(next) => {
                // Going on costs no try; a new attempt of the same does.
                tries += u32::from(next.stage() == settlement.stage());
                settlement = next;
            }
            // The very same, refused twice.
            Step::Refused(next, reason) if refused.as_ref() == Some(&next.item_ids) => {
                return Ok(Some(stuck(&next, &reason)));
            }
            Step::Refused(next, reason) => {
                tracing::info!(reason, "listing what is pending once more");
                tries += 1;
                refused = Some(next.item_ids.clone());
                last = reason;
                settlement = next;
            }
            Step::Stuck(reason) => return Ok(Some(stuck(&settlement, &reason))),
            Step::Unknown(doubt) => {
                last.clone_from(&doubt.message);
                if !back_off(context, &doubt, tries).await {
                    break;
                }
                tries += 1;
            }
        }
    }
    let message = format!(
        "It is not known how far settlement {} has come ({last}); the next run goes on with it.",
        settlement.settlement_id
    );
    Ok(Some(AccountError::new(&settlement.eco_id, "IN_DOUBT", message)))
}

fn stuck(settlement: &Settlement, reason: &str) -> AccountError {
    tracing::error!(settlement_id = %settlement.settlement_id, reason, "a settlement is stuck");
    let message = format!("Settlement {} goes no further: {reason}", settlement.settlement_id);
    AccountError::new(&settlement.eco_id, "SETTLEMENT_STUCK", message)
}

/// Makes the empty draft.
async fn create(context: &ChargeContext, settlement: &Settlement) -> Result<Step, Error> {
    let outcome = if settlement.is_young {
        Some(context.payments.create_invoice(&settlement.invoice, &settlement.key()).await)
    } else {
        None
    };
    match outcome {
        Some(Outcome::Succeeded { id, .. }) => {
            keep(context, settlement, Settlement { invoice_id: Some(id), ..settlement.clone() }).await
        }
        // Perhaps because of the subscription, which has ended.
        Some(Outcome::FailedForGood(refusal)) if settlement.invoice.subscription.is_some() => {
            tracing::info!(reason = refusal.reason, "making the invoice of the customer alone");
            let mut next = again(settlement);
            next.invoice.subscription = None;
            keep(context, settlement, next).await
        }
        Some(Outcome::FailedForGood(refusal)) => Ok(Step::Stuck(refusal.message)),
        Some(Outcome::Unknown(doubt)) if doubt.advice != Advice::Look => Ok(Step::Unknown(doubt)),
        // An extra draft that comes to be late stays empty, and is never finalised.
        Some(Outcome::Unknown(_)) | None => {
            let customer = &settlement.invoice.customer;
            let found =
                context.payments.find_invoices(customer, settlement.settlement_id, &context.pace).await;
            match found {
                Ok(found) => match found.into_iter().find(|invoice| invoice.is_draft) {
                    Some(draft) => {
                        let next = Settlement { invoice_id: Some(draft.invoice_id), ..again(settlement) };
                        keep(context, settlement, next).await
                    }
                    None => keep(context, settlement, again(settlement)).await,
                },
                Err(doubt) => Ok(Step::Unknown(doubt)),
            }
        }
    }
}

/// Puts on it what is pending still. What was put on it is not pending any more, all or none.
async fn fill(context: &ChargeContext, settlement: &Settlement) -> Result<Step, Error> {
    let Some(invoice_id) = settlement.invoice_id.as_deref() else {
        return Ok(Step::Stuck("it has no invoice".to_owned()));
    };
    let filled = Settlement { is_filled: true, ..again(settlement) };
    let mut pending = match pending(context, settlement).await? {
        Ok(pending) => pending,
        Err(doubt) => return Ok(Step::Unknown(doubt)),
    };
    let was_sent = !settlement.item_ids.is_empty();
    if pending.is_empty() && !was_sent {
        // Nobody is to get an empty invoice: the draft stays one.
        let mut connection = db::acquire(&context.pool).await?;
        let is_done = settlements::finish_empty(&mut connection, settlement).await?;
        return if is_done { Ok(Step::Done) } else { read_again(&mut connection, settlement).await };
    }
    if pending.is_empty() || (was_sent && settlement.item_ids.iter().all(|id| !pending.contains(id))) {
        return keep(context, settlement, filled).await;
    }
    pending.truncate(MAX_ITEMS);
    if pending != settlement.item_ids || !settlement.is_young {
        let next = Settlement { item_ids: pending, ..again(settlement) };
        return keep(context, settlement, next).await;
    }
    match context.payments.add_items(invoice_id, &pending, &settlement.key()).await {
        Outcome::Succeeded { .. } => keep(context, settlement, filled).await,
        Outcome::Unknown(doubt) if doubt.advice != Advice::Look => Ok(Step::Unknown(doubt)),
        Outcome::Unknown(_) => keep(context, settlement, again(settlement)).await,
        // One of them may be on another invoice by now, or the draft was finalised by hand.
        Outcome::FailedForGood(refusal) => {
            let customer = &settlement.invoice.customer;
            let found =
                context.payments.find_invoices(customer, settlement.settlement_id, &context.pace).await;
            match found {
                Ok(found) if found.iter().any(|i| i.invoice_id == invoice_id && i.is_draft) => {
                    match keep(context, settlement, again(settlement)).await? {
                        Step::Kept(next) => Ok(Step::Refused(next, refusal.message)),
                        step => Ok(step),
                    }
                }
                Ok(_) => keep(context, settlement, anew(settlement)).await,
                Err(doubt) => Ok(Step::Unknown(doubt)),
            }
        }
    }
}

/// Finalises it.
async fn finalize(context: &ChargeContext, settlement: &Settlement) -> Result<Step, Error> {
    let Some(invoice_id) = settlement.invoice_id.as_deref() else {
        return Ok(Step::Stuck("it has no invoice".to_owned()));
    };
    let outcome = context.payments.finalize_invoice(invoice_id, &settlement.key()).await;
    let refusal = match outcome {
        Outcome::Succeeded { .. } => return finish(context, settlement).await,
        Outcome::Unknown(doubt) if doubt.advice != Advice::Look => return Ok(Step::Unknown(doubt)),
        Outcome::Unknown(_) => None,
        Outcome::FailedForGood(refusal) => Some(refusal.message),
    };
    let customer = &settlement.invoice.customer;
    match context.payments.find_invoices(customer, settlement.settlement_id, &context.pace).await {
        Ok(found) => match (found.iter().find(|i| i.invoice_id == invoice_id), refusal) {
            (Some(invoice), _) if !invoice.is_draft => finish(context, settlement).await,
            (Some(_), Some(refusal)) => Ok(Step::Stuck(refusal)),
            (Some(_), None) => keep(context, settlement, again(settlement)).await,
            // Somebody has deleted the draft: its items are pending again.
            (None, _) => keep(context, settlement, anew(settlement)).await,
        },
        Err(doubt) => Ok(Step::Unknown(doubt)),
    }
}

/// The next attempt.
fn again(settlement: &Settlement) -> Settlement {
    Settlement { attempt: settlement.attempt + 1, is_young: true, ..settlement.clone() }
}

/// The next attempt, from the beginning: the draft is none any more.
fn anew(settlement: &Settlement) -> Settlement {
    Settlement { invoice_id: None, item_ids: vec![], is_filled: false, ..again(settlement) }
}

async fn keep(context: &ChargeContext, before: &Settlement, after: Settlement) -> Result<Step, Error> {
    let mut connection = db::acquire(&context.pool).await?;
    if settlements::keep(&mut connection, before, &after).await? {
        return Ok(Step::Kept(after));
    }
    read_again(&mut connection, before).await
}

/// Somebody else goes on with it, or has finished it.
async fn read_again(connection: &mut PgConnection, before: &Settlement) -> Result<Step, Error> {
    match settlements::open(connection, &before.eco_id).await? {
        Some(open) if open.settlement_id == before.settlement_id => Ok(Step::Kept(open)),
        _ => Ok(Step::Done),
    }
}

async fn finish(context: &ChargeContext, settlement: &Settlement) -> Result<Step, Error> {
    let mut connection = db::acquire(&context.pool).await?;
    settlements::finish(&mut connection, settlement.settlement_id).await?;
    Ok(Step::Done)
}
