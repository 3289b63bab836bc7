//! Subscriptions: they begin, renew at the end of each period with an invoice, and end.
//!
//! `create` begins them, `update` changes them, `form` is their JSON form, `terms` what they
//! cost and how often; here is what happens to them in time.

mod create;
mod form;
mod prorate;
mod terms;
mod update;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, page_of};
use crate::objects::customers::Customer;
use crate::objects::invoices::{self, Invoice, Reason};
use crate::objects::prices::Recurring;
use crate::objects::{Resource as _, announced, changed, events, named};
use crate::state::{AfterRetries, State};
use crate::tx::Tx;

pub(crate) use create::{Offer, create, start};
pub(crate) use terms::Collection;
use terms::boundary;
pub(crate) use update::{resume, set_status, update};

/// For how long the first invoice of an incomplete subscription can be paid.
const INCOMPLETE_SECONDS: i64 = 23 * 3600;

const CREATED: &str = "customer.subscription.created";
const UPDATED: &str = "customer.subscription.updated";
const DELETED: &str = "customer.subscription.deleted";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Subscription {
    id: String,
    created: i64,
    pub(crate) customer: String,
    pub(crate) currency: String,
    billing_cycle_anchor: i64,
    pub(crate) recurring: Recurring,
    pub(crate) items: Vec<Item>,
    description: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) collection_method: String,
    pub(crate) days_until_due: Option<i64>,
    #[serde(default)]
    pub(crate) status: Status,
    /// The current one, or the last when it is over.
    #[serde(default)]
    pub(crate) period: Option<Period>,
    #[serde(default)]
    trial: Option<Period>,
    #[serde(default)]
    latest_invoice: Option<String>,
    #[serde(default)]
    pub(crate) pause: Option<Pause>,
    /// When it ends by itself.
    cancel_at: Option<i64>,
    /// Whether that is a time of its own instead of the end of the period.
    #[serde(default)]
    own_cancel_at: bool,
    canceled_at: Option<i64>,
    ended_at: Option<i64>,
    #[serde(default)]
    cancellation_reason: Option<String>,
    cancellation_comment: Option<String>,
    cancellation_feedback: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) price: String,
    pub(crate) quantity: i64,
    metadata: BTreeMap<String, String>,
}

/// From the start, which belongs to it, to the end, which does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Period {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// `canceled` is not among them: it is what a subscription that has ended is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Incomplete,
    IncompleteExpired,
    Trialing,
    #[default]
    Active,
    PastDue,
    Unpaid,
    Paused,
}

/// Collection is paused: invoices are made, and then left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pause {
    pub(crate) behavior: PauseBehavior,
    resumes_at: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PauseBehavior {
    KeepAsDraft,
    MarkUncollectible,
    Void,
}

impl Subscription {
    /// Whether it belongs to the customer.
    pub(crate) fn is_of(&self, customer: &str) -> bool {
        self.customer == customer
    }

    /// Whether it has ended for good.
    pub(crate) fn is_over(&self) -> bool {
        self.ended_at.is_some()
    }

    pub(crate) fn is_trialing(&self) -> bool {
        self.status == Status::Trialing
    }

    pub(crate) fn test_clock<'a>(&self, state: &'a State) -> Option<&'a str> {
        state.get::<Customer>(&self.customer)?.test_clock.as_deref()
    }

    fn status(&self) -> Value {
        match self.status {
            Status::IncompleteExpired => json!("incomplete_expired"),
            _ if self.is_over() => json!("canceled"),
            status => json!(status),
        }
    }

    /// The current period, or the last one when it is over.
    pub(crate) fn current_period(&self) -> Period {
        self.period.unwrap_or_else(|| self.period_from(self.created))
    }

    /// The period that begins at `start`, by the billing cycle anchor.
    fn period_from(&self, start: i64) -> Period {
        let mut index = 0;
        let mut end = self.billing_cycle_anchor;
        while end <= start {
            index += 1;
            end = boundary(self.billing_cycle_anchor, &self.recurring, index);
        }
        Period { start, end }
    }

    pub(crate) fn latest_invoice(&self) -> Option<&str> {
        self.latest_invoice.as_deref()
    }

    /// How long two intervals from `start` are.
    pub(crate) fn two_intervals_from(&self, start: i64) -> i64 {
        boundary(start, &self.recurring, 2) - start
    }

    /// What of `amount`, the price of a whole interval, falls to a first period that is shorter
    /// because the anchor comes before its natural end; rounded to the nearest unit.
    pub(crate) fn share_of(&self, period: Period, amount: i64) -> i64 {
        let whole = boundary(period.start, &self.recurring, 1) - period.start;
        let part = period.end - period.start;
        if period.start != self.created || part >= whole {
            return amount;
        }
        let (amount, part, whole) = (i128::from(amount), i128::from(part), i128::from(whole));
        i64::try_from((amount * part * 2 + whole) / (whole * 2)).unwrap_or(i64::MAX)
    }

    fn next_due(&self) -> Option<i64> {
        if self.is_over() {
            return None;
        }
        if self.status == Status::Paused {
            return self.cancel_at;
        }
        if self.status == Status::Incomplete {
            return Some(self.created + INCOMPLETE_SECONDS);
        }
        let Some(period) = self.period else {
            return Some(self.created);
        };
        let resumes_at = self.pause.as_ref().and_then(|pause| pause.resumes_at);
        [Some(period.end), self.cancel_at, resumes_at].into_iter().flatten().min()
    }
}

/// What is due to a subscription: a renewal, an end, or the end of a pause.
pub(crate) fn fall_due(tx: &mut Tx<'_>, mut subscription: Subscription) {
    let now = tx.now();
    if subscription.period.is_none() {
        subscription.period = Some(subscription.current_period());
        tx.put(subscription);
    } else if subscription.status == Status::Incomplete {
        expire(tx, subscription);
    } else if subscription.pause.as_ref().and_then(|pause| pause.resumes_at).is_some_and(|at| at <= now) {
        subscription.pause = None;
        changed(tx, subscription, UPDATED);
    } else if subscription.cancel_at.is_some_and(|at| at <= now) {
        end_as_planned(tx, subscription);
    } else {
        renew(tx, subscription);
    }
}

/// The next period begins, with a draft invoice for it.
fn renew(tx: &mut Tx<'_>, mut subscription: Subscription) {
    let ended = subscription.current_period();
    if subscription.is_trialing() {
        subscription.status = Status::Active;
    }
    subscription.period = Some(subscription.period_from(ended.end));
    let invoice = invoices::draft_for(tx, &subscription, ended, Reason::SubscriptionCycle);
    subscription.latest_invoice = Some(invoice);
    changed(tx, subscription, UPDATED);
}

/// Pending items are still charged at the end of the period.
fn end_as_planned(tx: &mut Tx<'_>, mut subscription: Subscription) {
    subscription.ended_at = Some(tx.now());
    if let Some(invoice) = invoices::draft_of_pending_items(tx, &subscription, Reason::SubscriptionCycle) {
        subscription.latest_invoice = Some(invoice);
    }
    announced(tx, subscription, DELETED);
}

/// The first invoice was not paid in time.
fn expire(tx: &mut Tx<'_>, mut subscription: Subscription) {
    subscription.status = Status::IncompleteExpired;
    subscription.ended_at = Some(tx.now());
    if let Some(invoice) = &subscription.latest_invoice {
        let invoice = invoice.clone();
        invoices::void_unpaid(tx, &invoice);
    }
    changed(tx, subscription, UPDATED);
}

/// An invoice was paid: nothing that is due is left open, perhaps.
pub(crate) fn note_payment(tx: &mut Tx<'_>, invoice: &Invoice) {
    let Some(mut subscription) = of_invoice(tx, invoice) else { return };
    let owing = matches!(subscription.status, Status::Incomplete | Status::PastDue | Status::Unpaid);
    let open = tx.state().of_customer::<Invoice>(&subscription.customer).any(|other| {
        other.id() != invoice.id() && other.subscription == invoice.subscription && other.is_overdue()
    });
    if owing && !open && !subscription.is_over() {
        subscription.status = Status::Active;
        changed(tx, subscription, UPDATED);
    }
}

/// A payment failed; with `last`, it is not tried again by itself.
pub(crate) fn note_failed_payment(tx: &mut Tx<'_>, invoice: &Invoice, last: bool) {
    let Some(mut subscription) = of_invoice(tx, invoice) else { return };
    if subscription.is_over() || subscription.status == Status::Incomplete {
        return;
    }
    let after_retries = tx.state().settings.after_retries;
    match after_retries {
        AfterRetries::Cancel if last => {
            end(tx, subscription, "payment_failed");
            return;
        }
        AfterRetries::Unpaid if last => subscription.status = Status::Unpaid,
        _ if subscription.status == Status::Active => subscription.status = Status::PastDue,
        _ => {}
    }
    changed(tx, subscription, UPDATED);
}

fn of_invoice(tx: &Tx<'_>, invoice: &Invoice) -> Option<Subscription> {
    tx.state().get::<Subscription>(invoice.subscription.as_deref()?).cloned()
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Subscription>(tx, id)?.render(tx.state()))
}

pub(crate) fn cancel(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let (mut comment, mut feedback) = (None, None);
    if let Some(mut details) = params.hash("cancellation_details")? {
        comment = details.text("comment")?;
        feedback = details.text("feedback")?;
        details.finish()?;
    }
    for field in ["invoice_now", "prorate"] {
        if params.boolean(field)? == Some(true) {
            return Err(params.wrong(field, "The stand-in neither prorates nor invoices a cancellation."));
        }
    }
    params.finish()?;
    let mut subscription: Subscription = named(tx, id)?;
    if subscription.is_over() {
        return Err(ApiError::not_found("subscription", id));
    }
    subscription.cancellation_comment = comment;
    subscription.cancellation_feedback = feedback;
    let ended = end(tx, subscription, "cancellation_requested");
    Ok(ended.render(tx.state()))
}

/// Ends a subscription now. What is pending stays pending; the customer's open invoices, and the subscription's
/// drafts, are no longer collected by themselves.
pub(crate) fn end(tx: &mut Tx<'_>, mut subscription: Subscription, reason: &str) -> Subscription {
    subscription.ended_at = Some(tx.now());
    subscription.canceled_at = Some(tx.now());
    subscription.cancel_at = None;
    subscription.own_cancel_at = false;
    subscription.cancellation_reason = Some(reason.to_owned());
    invoices::stop_collecting(tx, &subscription);
    announced(tx, subscription.clone(), DELETED);
    subscription
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let customer = params.text("customer")?;
    let price = params.text("price")?;
    let collection_method = params.one_of("collection_method", &["charge_automatically", "send_invoice"])?;
    let known = [
        "active",
        "all",
        "canceled",
        "ended",
        "incomplete",
        "incomplete_expired",
        "past_due",
        "paused",
        "trialing",
        "unpaid",
    ];
    let status = params.one_of("status", &known)?;
    let test_clock = params.text("test_clock")?;
    let created = params.time_range("created")?;
    params.finish()?;
    page_of::<Subscription>(tx.state(), &page, customer.as_deref(), |subscription| {
        let state_now = subscription.status();
        let wanted = match status.as_deref() {
            // Without a status, all that are not canceled.
            None => state_now != "canceled",
            Some("all") => true,
            Some("ended") => state_now == "canceled" || state_now == "incomplete_expired",
            Some(status) => state_now == status,
        };
        wanted
            && created.contains(subscription.created)
            && price.as_ref().is_none_or(|price| subscription.items.iter().any(|item| item.price == *price))
            && collection_method.as_ref().is_none_or(|method| subscription.collection_method == *method)
            && ((test_clock.is_none() && customer.is_some())
                || subscription.test_clock(tx.state()) == test_clock.as_deref())
    })
}

/// An event that says more than that the subscription has changed.
fn tell(tx: &mut Tx<'_>, subscription: &Subscription, event: &str) {
    let form = subscription.render(tx.state());
    events::emit(tx, event, &form, None);
}
