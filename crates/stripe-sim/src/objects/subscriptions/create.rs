//! A subscription begins: its first period, and the invoice for it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::objects::customers::Customer;
use crate::objects::invoices::{self, Reason};
use crate::objects::money::take_currency;
use crate::objects::subscriptions::terms::{self, AskedItem, Collection, boundary};
use crate::objects::subscriptions::{CREATED, Period, Status, Subscription, UPDATED};
use crate::objects::{Resource as _, changed, events, named, saved};
use crate::tx::Tx;

/// What a new subscription is made of.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    items: Vec<AskedItem>,
    currency: Option<String>,
    anchor: Option<i64>,
    trial: Trial,
    prorate: bool,
    payment: PaymentBehavior,
    collection: Collection,
    cancel_at_period_end: bool,
    cancel_at: Option<i64>,
    description: Option<String>,
    metadata: MetadataChange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    None,
    Days(i64),
    Until(i64),
}

/// What becomes of a subscription whose first payment fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PaymentBehavior {
    /// It is incomplete: `allow_incomplete`.
    Allow,
    /// It is incomplete, and no payment is even attempted: `default_incomplete`.
    Wait,
    /// There is none: `error_if_incomplete`.
    Refuse,
}

impl PaymentBehavior {
    pub(super) fn take(params: &mut Params) -> Result<Self, ApiError> {
        let known = ["allow_incomplete", "default_incomplete", "error_if_incomplete"];
        Ok(match params.one_of("payment_behavior", &known)?.as_deref() {
            Some("default_incomplete") => Self::Wait,
            Some("error_if_incomplete") => Self::Refuse,
            _ => Self::Allow,
        })
    }
}

impl Offer {
    fn take(params: &mut Params) -> Result<Self, ApiError> {
        Ok(Self {
            items: AskedItem::take_all(params, "items")?,
            currency: take_currency(params)?,
            anchor: params.timestamp("billing_cycle_anchor")?,
            trial: Trial::take(params)?,
            prorate: params.one_of("proration_behavior", &["create_prorations", "none"])?.as_deref()
                != Some("none"),
            payment: PaymentBehavior::take(params)?,
            collection: Collection::take(params)?,
            cancel_at_period_end: params.boolean("cancel_at_period_end")?.unwrap_or(false),
            cancel_at: params.timestamp("cancel_at")?,
            description: params.text("description")?,
            metadata: params.metadata()?,
        })
    }

    /// What a checkout session offers: `line_items` and `subscription_data`.
    pub(crate) fn of_checkout(items: Vec<(String, i64)>, mut data: Params) -> Result<Self, ApiError> {
        let offer = Self {
            items: items.into_iter().map(|(price, quantity)| AskedItem::new(price, quantity)).collect(),
            currency: None,
            anchor: None,
            trial: Trial::take(&mut data)?,
            prorate: false,
            payment: PaymentBehavior::Refuse,
            collection: Collection::automatic(),
            cancel_at_period_end: false,
            cancel_at: None,
            description: data.text("description")?,
            metadata: data.metadata()?,
        };
        data.finish()?;
        Ok(offer)
    }

    /// # Errors
    /// When its prices do not go together.
    pub(crate) fn check(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        let prices = self.items.iter().map(AskedItem::price);
        terms::agreed(tx, prices, self.currency.as_deref()).map(drop)
    }
}

impl Trial {
    fn take(params: &mut Params) -> Result<Self, ApiError> {
        let days = params.integer_within("trial_period_days", 1..=730)?;
        let until = params.timestamp("trial_end")?;
        match (days, until) {
            (Some(_), Some(_)) => Err(params.exclusive(&["trial_period_days", "trial_end"])),
            (Some(days), None) => Ok(Self::Days(days)),
            (None, Some(until)) => Ok(Self::Until(until)),
            (None, None) => Ok(Self::None),
        }
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required("customer")?;
    let offer = Offer::take(&mut params)?;
    params.finish()?;
    let customer = Customer::referenced(tx, &customer)?;
    let id = start(tx, customer, offer)?;
    Ok(named::<Subscription>(tx, &id)?.render(tx.state()))
}

/// Begins a subscription, and says its id.
pub(crate) fn start(tx: &mut Tx<'_>, mut customer: Customer, offer: Offer) -> Result<String, ApiError> {
    let prices = offer.items.iter().map(AskedItem::price);
    let (currency, recurring) = terms::agreed(tx, prices, offer.currency.as_deref())?;
    customer.bind_currency(tx, &currency)?;
    let now = tx.now();
    let trial_end = match offer.trial {
        Trial::None => None,
        Trial::Days(days) => Some(now + days * 86_400),
        Trial::Until(end) if end > now => Some(end),
        Trial::Until(_) => {
            return Err(ApiError::refused("trial_end must be in the future.").param("trial_end"));
        }
    };
    let anchor = offer.anchor.or(trial_end).unwrap_or(now);
    if trial_end.is_some_and(|end| end != anchor) {
        let message = "The stand-in begins the billing cycle when the trial ends.";
        return Err(ApiError::refused(message).param("billing_cycle_anchor"));
    }
    if trial_end.is_none() && (anchor < now || anchor > boundary(now, &recurring, 1)) {
        let message =
            "billing_cycle_anchor must be now or later, and not later than the next natural billing date.";
        return Err(ApiError::refused(message).param("billing_cycle_anchor"));
    }
    let mut items = Vec::new();
    for item in offer.items {
        items.push(item.build(tx)?);
    }
    let automatic = offer.collection.method == Collection::AUTOMATIC;
    let mut subscription = Subscription {
        id: tx.ids().next("sub"),
        created: now,
        customer: customer.id().to_owned(),
        currency,
        billing_cycle_anchor: anchor,
        recurring,
        items,
        description: offer.description,
        metadata: BTreeMap::new(),
        collection_method: offer.collection.method,
        days_until_due: offer.collection.days_until_due,
        status: Status::Active,
        period: None,
        trial: trial_end.map(|end| Period { start: now, end }),
        latest_invoice: None,
        pause: None,
        cancel_at: None,
        own_cancel_at: false,
        canceled_at: None,
        ended_at: None,
        cancellation_reason: None,
        cancellation_comment: None,
        cancellation_feedback: None,
    };
    offer.metadata.apply(&mut subscription.metadata)?;
    let period = subscription.period_from(now);
    subscription.period = Some(period);
    subscription.set_cancel_at(offer.cancel_at, offer.cancel_at_period_end, now)?;
    let stub = anchor > now && trial_end.is_none();
    subscription.status = if trial_end.is_some() {
        Status::Trialing
    } else if automatic && (!stub || offer.prorate) {
        Status::Incomplete
    } else {
        Status::Active
    };
    let id = subscription.id.clone();
    let form = saved(tx, subscription.clone());
    events::emit(tx, CREATED, &form, None);
    // Without proration, the time until the anchor is free and not invoiced.
    if !stub || offer.prorate {
        subscription.invoice_period(tx, Reason::SubscriptionCreate, offer.payment)?;
    }
    Ok(id)
}

impl Subscription {
    /// Invoices the current period at once. What an automatic payment leads to is in the state then.
    pub(super) fn invoice_period(
        self,
        tx: &mut Tx<'_>,
        reason: Reason,
        payment: PaymentBehavior,
    ) -> Result<(), ApiError> {
        let period = self.current_period();
        let covered = Period { start: period.start, end: period.start };
        let invoice = invoices::draft_for(tx, &self, covered, reason);
        self.collect(tx, invoice, payment)
    }

    /// Invoices what is pending of it at once.
    pub(super) fn invoice_pending(self, tx: &mut Tx<'_>, payment: PaymentBehavior) -> Result<(), ApiError> {
        match invoices::draft_of_pending_items(tx, &self, Reason::SubscriptionUpdate) {
            Some(invoice) => self.collect(tx, invoice, payment),
            None => {
                changed(tx, self, UPDATED);
                Ok(())
            }
        }
    }

    fn collect(mut self, tx: &mut Tx<'_>, invoice: String, payment: PaymentBehavior) -> Result<(), ApiError> {
        self.latest_invoice = Some(invoice.clone());
        let automatic = self.collection_method == Collection::AUTOMATIC;
        let pays = payment != PaymentBehavior::Wait;
        changed(tx, self, UPDATED);
        if automatic && !invoices::collect_now(tx, &invoice, pays) {
            match payment {
                PaymentBehavior::Refuse => return Err(ApiError::card_declined()),
                PaymentBehavior::Allow | PaymentBehavior::Wait => {}
            }
        }
        Ok(())
    }

    /// When it ends by itself: at a time, at the end of the period, or not.
    pub(super) fn set_cancel_at(
        &mut self,
        at: Option<i64>,
        at_period_end: bool,
        now: i64,
    ) -> Result<(), ApiError> {
        if at.is_some() && at_period_end {
            let message = "Only one of cancel_at and cancel_at_period_end can be set.";
            return Err(ApiError::refused(message).param("cancel_at"));
        }
        if at.is_some_and(|at| at <= now) {
            return Err(ApiError::refused("cancel_at must be in the future.").param("cancel_at"));
        }
        self.own_cancel_at = at.is_some();
        self.cancel_at = at.or(at_period_end.then(|| self.current_period().end));
        self.canceled_at = self.cancel_at.map(|_| now);
        self.cancellation_reason = self.cancel_at.map(|_| "cancellation_requested".to_owned());
        Ok(())
    }
}
