//! Takes charges off drafts that nobody finalises.
//!
//! Stripe finalises the draft of a billing cycle by itself, but no more once its subscription was ended at once. Such a
//! draft may have items of ours, and is not ours to finalise: what else it has was not agreed upon. So these items are
//! deleted, the ledger says that they were not charged, and they are charged anew.
//!
//! That an item is to be deleted is written down before, and what became of it after: who comes after a crash knows that
//! one which is not there was deleted here.

use nexus_kit::db;

use crate::{
    app::process_overage::{ChargeContext, MAX_TRIES, back_off},
    domain::run::AccountError,
    error::Error,
    payments::Doubt,
    store::{
        records,
        take_backs::{self, TakeBack},
    },
};

/// Returns why it is not done; a repeat goes on.
#[tracing::instrument(name = "settlement.take_back", skip_all, fields(eco_id))]
pub async fn run(context: &ChargeContext, eco_id: &str) -> Result<Option<AccountError>, Error> {
    let mut last = "the server was stopped".to_owned();
    for tries in 0..MAX_TRIES {
        if context.is_stopped() {
            break;
        }
        match all(context, eco_id).await? {
            Ok(()) => return Ok(None),
            Err(doubt) => {
                last.clone_from(&doubt.message);
                if !back_off(context, &doubt, tries).await {
                    break;
                }
            }
        }
    }
    let message = format!(
        "It is not known whether all charges are off drafts that nobody finalises ({last}); a repeat goes on."
    );
    Ok(Some(AccountError::new(eco_id, "IN_DOUBT", message)))
}

async fn all(context: &ChargeContext, eco_id: &str) -> Result<Result<(), Doubt>, Error> {
    let subscription = {
        let mut connection = db::acquire(&context.pool).await?;
        take_backs::last_ended(&mut connection, eco_id).await?
    };
    let Some(subscription) = subscription else { return Ok(Ok(())) };
    context.pace.wait().await;
    let abandoned = match context.payments.abandoned_items(&subscription, &context.pace).await {
        Ok(abandoned) => abandoned,
        Err(doubt) => return Ok(Err(doubt)),
    };
    let begun = {
        let mut connection = db::acquire(&context.pool).await?;
        let ids: Vec<String> = abandoned.iter().cloned().collect();
        take_backs::begin(&mut connection, eco_id, &ids).await?;
        take_backs::begun(&mut connection, eco_id).await?
    };
    for take_back in begun {
        context.pace.wait().await;
        let is_there = abandoned.contains(&take_back.item_id);
        if let Err(doubt) = one(context, &take_back, is_there).await? {
            return Ok(Err(doubt));
        }
    }
    Ok(Ok(()))
}

async fn one(
    context: &ChargeContext,
    take_back: &TakeBack,
    is_abandoned: bool,
) -> Result<Result<(), Doubt>, Error> {
    let TakeBack { customer, charge_id, item_id, .. } = take_back;
    if is_abandoned {
        if let Err(doubt) = context.payments.delete_item(item_id).await {
            return Ok(Err(doubt));
        }
    } else {
        // Deleted before a crash, unless somebody has finalised the draft since.
        match context.payments.find_items(customer, *charge_id, &context.pace).await {
            Ok(found) if found.iter().any(|item| item.item_id == *item_id) => {
                let mut connection = db::acquire(&context.pool).await?;
                take_backs::give_up(&mut connection, take_back).await?;
                return Ok(Ok(()));
            }
            Ok(_) => {}
            Err(doubt) => return Ok(Err(doubt)),
        }
    }
    let period = &take_back.period;
    let mut transaction = db::begin(&context.pool).await?;
    records::lock(&mut transaction, period).await?;
    if take_backs::finish(&mut transaction, take_back).await? {
        records::set_billed(&mut transaction, period).await?;
        records::reopen(&mut transaction, period).await?;
    }
    transaction.commit().await?;
    tracing::warn!(eco_id = period.eco_id, %charge_id, item_id, "a charge was taken off a draft that nobody finalises");
    Ok(Ok(()))
}
