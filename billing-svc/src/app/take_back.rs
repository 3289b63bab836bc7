//! Takes charges off drafts that nobody finalises.
//!
//! Stripe finalises the draft of a billing cycle by itself, but no more once its subscription was ended at once. Drafts
//! that it makes while a subscription is unpaid, or is paused and keeps its drafts, it never finalises, also not when the
//! subscription is paid again or goes on: that is left to a person. Such a draft may have items of ours, and is not ours to
//! finalise: what else it has was not agreed upon. So these items are deleted, the ledger says that they were not charged,
//! and they are charged anew: what the subscription still takes is on its next invoice. Where it goes on, the draft is left
//! for some days to whoever may finalise it by hand. Stripe may also go on with the draft of a subscription that has ended:
//! then they are left on it.
//!
//! So is a draft of our own abandoned whose settlement the database has lost with its last moments, by a failover: nobody
//! would finalise it, and what is on it is not pending.
//!
//! That an item is to be deleted is written down before, and what became of it after: who comes after a crash knows that
//! one which is not there was deleted here.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use nexus_kit::db;

use crate::{
    app::process_overage::{ChargeContext, MAX_TRIES, back_off},
    domain::run::AccountError,
    error::Error,
    payments::{Doubt, Place},
    store::{
        ended_subscriptions, open_charges, records, settlements,
        take_backs::{self, TakeBack},
        webhook_messages,
    },
};

/// How long a draft of a subscription that goes on is left to whoever may finalise it by hand.
const LEFT_FOR: TimeDelta = TimeDelta::days(2);

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Whether any were taken off: they are owed again.
    pub some: bool,
    /// Whether any are left on drafts that are finalised by themselves.
    pub left: bool,
}

/// Returns what was done, or why it is not known; a repeat goes on.
#[tracing::instrument(name = "settlement.take_back", skip_all, fields(eco_id))]
pub async fn run(context: &ChargeContext, eco_id: &str) -> Result<Result<Taken, AccountError>, Error> {
    let (ended, customers) = {
        let mut connection = db::acquire(&context.pool).await?;
        let ended = ended_subscriptions::stripe_ids(&mut connection, eco_id).await?;
        (ended, open_charges::customers(&mut connection, eco_id).await?)
    };
    let mut taken = Taken::default();
    for customer in &customers {
        let mut tries = 0;
        loop {
            let doubt = match all(context, eco_id, customer, &ended).await? {
                Ok(more) => {
                    taken = Taken { some: taken.some || more.some, left: taken.left || more.left };
                    break;
                }
                Err(doubt) => doubt,
            };
            tries += 1;
            if !back_off(context, &doubt, tries - 1).await || tries >= MAX_TRIES {
                return Ok(Err(in_doubt(eco_id, &doubt)));
            }
        }
    }
    Ok(Ok(taken))
}

fn in_doubt(eco_id: &str, doubt: &Doubt) -> AccountError {
    let message = format!(
        "It is not known whether all charges are off drafts that nobody finalises ({}); a repeat goes on.",
        doubt.message
    );
    AccountError::new(eco_id, "IN_DOUBT", message)
}

/// Takes back what lies on such drafts of one customer's.
async fn all(
    context: &ChargeContext,
    eco_id: &str,
    customer: &str,
    ended: &[String],
) -> Result<Result<Taken, Doubt>, Error> {
    if !context.turn().await {
        return Ok(Err(Doubt::stopped()));
    }
    let places = match context.payments.places(customer, &context.pace).await {
        Ok(places) => places,
        Err(doubt) => return Ok(Err(doubt)),
    };
    let (left, abandoned, begun) = {
        let mut connection = db::acquire(&context.pool).await?;
        // After the listing: a draft that was filled by then, and whose settlement has ended since, is final.
        let is_settling = settlements::open(&mut connection, eco_id).await?.is_some();
        let now = webhook_messages::now(&mut connection).await?;
        let (going_on, abandoned) = on_drafts(&places, ended, is_settling, now);
        let left = open_charges::among(&mut connection, eco_id, &going_on).await?;
        open_charges::set_invoiced(&mut connection, eco_id, &finals(&places)).await?;
        take_backs::begin(&mut connection, eco_id, &abandoned).await?;
        let begun = take_backs::begun(&mut connection, eco_id, customer).await?;
        (left, abandoned, begun)
    };
    let mut taken = Taken { some: false, left: !left.is_empty() };
    for take_back in begun {
        if !context.turn().await {
            return Ok(Err(Doubt::stopped()));
        }
        let is_there = abandoned.contains(&take_back.item_id);
        match one(context, &take_back, is_there).await? {
            Ok(gone) => taken.some |= gone,
            Err(doubt) => return Ok(Err(doubt)),
        }
    }
    Ok(Ok(taken))
}

/// Items on final invoices.
fn finals(places: &HashMap<String, Place>) -> Vec<String> {
    let on_one = places.iter().filter(|(_, place)| **place == Place::Final);
    on_one.map(|(item_id, _)| item_id.clone()).collect()
}

/// Items on drafts of subscriptions that have ended which are finalised by themselves, and items on drafts that nobody
/// finalises; among these what is on drafts of our own, unless a settlement is under way.
fn on_drafts(
    places: &HashMap<String, Place>,
    ended: &[String],
    is_settling: bool,
    now: DateTime<Utc>,
) -> (Vec<String>, Vec<String>) {
    let (mut going_on, mut abandoned) = (Vec::new(), Vec::new());
    for (item_id, place) in places {
        match place {
            Place::Draft { is_ours: true, goes_on: false, .. } if !is_settling => {
                abandoned.push(item_id.clone())
            }
            Place::Draft { is_ours: false, subscription: Some(subscription), goes_on, .. }
                if ended.contains(subscription) =>
            {
                if *goes_on { &mut going_on } else { &mut abandoned }.push(item_id.clone());
            }
            Place::Draft { is_ours: false, goes_on: false, created, .. } if *created + LEFT_FOR <= now => {
                abandoned.push(item_id.clone());
            }
            _ => {}
        }
    }
    (going_on, abandoned)
}

/// False: the item stays.
async fn one(
    context: &ChargeContext,
    take_back: &TakeBack,
    is_abandoned: bool,
) -> Result<Result<bool, Doubt>, Error> {
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
                return Ok(Ok(false));
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
    Ok(Ok(true))
}
