//! Subscriptions. The current period follows from the billing cycle anchor and the time;
//! nothing has to run when a period ends.

mod form;

use std::collections::BTreeMap;

use chrono::{DateTime, Months};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::http::lists::{Page, page_of};
use crate::objects::customers::Customer;
use crate::objects::money::take_currency;
use crate::objects::prices::{Interval, Price, Recurring};
use crate::objects::{Resource as _, named, referenced, saved};
use crate::state::Tx;

const MAX_ITEMS: usize = 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Subscription {
    id: String,
    created: i64,
    pub(crate) customer: String,
    currency: String,
    billing_cycle_anchor: i64,
    recurring: Recurring,
    items: Vec<Item>,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    collection_method: String,
    days_until_due: Option<i64>,
    /// When it ends by itself, for `cancel_at_period_end`.
    cancel_at: Option<i64>,
    canceled_at: Option<i64>,
    ended_at: Option<i64>,
    cancellation_comment: Option<String>,
    cancellation_feedback: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    id: String,
    price: String,
    quantity: i64,
    metadata: BTreeMap<String, String>,
}

impl Subscription {
    /// Whether it belongs to the customer.
    pub(crate) fn is_of(&self, customer: &str) -> bool {
        self.customer == customer
    }

    /// When it ended, if it has by `now`.
    pub(crate) fn ended(&self, now: i64) -> Option<i64> {
        self.ended_at.or(self.cancel_at.filter(|at| *at <= now))
    }

    fn status(&self, now: i64) -> &'static str {
        if self.ended(now).is_some() { "canceled" } else { "active" }
    }

    /// The period that contains `now`, or the last one when the subscription has ended.
    fn period(&self, now: i64) -> (i64, i64) {
        let at = self.ended(now).map_or(now, |ended_at| ended_at.saturating_sub(1)).max(self.created);
        if at < self.billing_cycle_anchor {
            return (self.created, self.billing_cycle_anchor);
        }
        let boundary = |index| boundary(self.billing_cycle_anchor, &self.recurring, index);
        let mut index = 0;
        while boundary(index + 1) <= at {
            index += 1;
        }
        (boundary(index), boundary(index + 1))
    }
}

/// The start of period `index`. Months are counted from the anchor, so a 31st comes back.
fn boundary(anchor: i64, recurring: &Recurring, index: u32) -> i64 {
    let count = recurring.count * index;
    let months = match recurring.interval {
        Interval::Day => return anchor + i64::from(count) * 86_400,
        Interval::Week => return anchor + i64::from(count) * 7 * 86_400,
        Interval::Month => count,
        Interval::Year => count * 12,
    };
    DateTime::from_timestamp(anchor, 0)
        .and_then(|anchor| anchor.checked_add_months(Months::new(months)))
        .map_or(i64::MAX, |start| start.timestamp())
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required("customer")?;
    let currency = take_currency(&mut params)?;
    let asked: Vec<AskedItem> =
        params.hashes("items")?.into_iter().map(AskedItem::take).collect::<Result<_, _>>()?;
    if asked.is_empty() {
        return Err(params.missing("items"));
    }
    if asked.len() > MAX_ITEMS {
        let message = format!("A subscription can have up to {MAX_ITEMS} items.");
        return Err(params.wrong("items", message));
    }
    let anchor = params.timestamp("billing_cycle_anchor")?;
    let cancel_at_period_end = params.boolean("cancel_at_period_end")?.unwrap_or(false);
    let collection = Collection::take(&mut params)?;
    let description = params.text("description")?;
    let metadata = params.metadata()?;
    params.finish()?;

    let mut customer = Customer::referenced(tx, &customer)?;
    customer.check_not_declined()?;
    let (price_currency, recurring) = agreed_terms(tx, &asked, currency.as_deref())?;
    customer.bind_currency(tx, &price_currency)?;
    let mut items = Vec::new();
    for item in asked {
        items.push(item.build(tx)?);
    }
    let anchor = anchor.unwrap_or(tx.now());
    if anchor < tx.now() || anchor > boundary(tx.now(), &recurring, 1) {
        let message =
            "billing_cycle_anchor must be now or later, and not later than the next natural billing date.";
        return Err(ApiError::refused(message).param("billing_cycle_anchor"));
    }
    let mut subscription = Subscription {
        id: tx.ids().next("sub"),
        created: tx.now(),
        customer: customer.id().to_owned(),
        currency: price_currency,
        billing_cycle_anchor: anchor,
        recurring,
        items,
        description,
        metadata: BTreeMap::new(),
        collection_method: collection.method,
        days_until_due: collection.days_until_due,
        cancel_at: None,
        canceled_at: None,
        ended_at: None,
        cancellation_comment: None,
        cancellation_feedback: None,
    };
    metadata.apply(&mut subscription.metadata)?;
    set_cancel_at_period_end(&mut subscription, cancel_at_period_end, tx.now());
    Ok(saved(tx, subscription))
}

struct AskedItem {
    price: String,
    quantity: i64,
    metadata: MetadataChange,
}

impl AskedItem {
    fn take(mut params: Params) -> Result<Self, ApiError> {
        let item = Self {
            price: params.required("price")?,
            quantity: params.integer_within("quantity", 0..=999_999_999)?.unwrap_or(1),
            metadata: params.metadata()?,
        };
        params.finish()?;
        Ok(item)
    }

    fn build(self, tx: &mut Tx<'_>) -> Result<Item, ApiError> {
        let mut metadata = BTreeMap::new();
        self.metadata.apply(&mut metadata)?;
        let id = tx.ids().next("si");
        Ok(Item { id, price: self.price, quantity: self.quantity, metadata })
    }
}

/// The one currency and interval of all prices.
fn agreed_terms(
    tx: &Tx<'_>,
    asked: &[AskedItem],
    currency: Option<&str>,
) -> Result<(String, Recurring), ApiError> {
    let mut terms: Option<(String, Recurring)> = None;
    for (index, item) in asked.iter().enumerate() {
        let param = format!("items[{index}][price]");
        let price: Price = referenced(tx, &item.price, &param)?;
        if !price.active {
            let message = format!("The price '{}' is inactive.", item.price);
            return Err(ApiError::refused(message).param(&param));
        }
        let Some(recurring) = price.recurring else {
            let message = format!("The price '{}' is not recurring.", item.price);
            return Err(ApiError::refused(message).param(&param));
        };
        let first = terms.get_or_insert_with(|| (price.currency.clone(), recurring.clone()));
        if first.0 != price.currency || currency.is_some_and(|asked| asked != price.currency) {
            let message = "All prices of a subscription must have its currency.";
            return Err(ApiError::refused(message).param(&param));
        }
        if first.1 != recurring {
            let message = "All prices of a subscription must have the same billing interval.";
            return Err(ApiError::refused(message).param(&param));
        }
    }
    terms.ok_or_else(|| ApiError::refused("A subscription needs at least one item.").param("items"))
}

/// How what is due is collected; invoices have the same two parameters.
pub(crate) struct Collection {
    pub(crate) method: String,
    pub(crate) days_until_due: Option<i64>,
}

impl Collection {
    pub(crate) fn take(params: &mut Params) -> Result<Self, ApiError> {
        let method = params
            .one_of("collection_method", &["charge_automatically", "send_invoice"])?
            .unwrap_or_else(|| "charge_automatically".to_owned());
        let days_until_due = params.integer_within("days_until_due", 0..=3650)?;
        match (method.as_str(), days_until_due) {
            ("send_invoice", None) => Err(params.missing("days_until_due")),
            ("charge_automatically", Some(_)) => {
                Err(params.wrong("days_until_due", "days_until_due needs collection_method=send_invoice."))
            }
            _ => Ok(Self { method, days_until_due }),
        }
    }
}

fn set_cancel_at_period_end(subscription: &mut Subscription, cancel: bool, now: i64) {
    subscription.cancel_at = cancel.then(|| subscription.period(now).1);
    subscription.canceled_at = cancel.then_some(now);
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Subscription>(tx, id)?.render(&tx.view()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let cancel_at_period_end = params.boolean("cancel_at_period_end")?;
    let description = params.clearable("description")?;
    let metadata = params.metadata()?;
    params.finish()?;
    let mut subscription: Subscription = named(tx, id)?;
    if subscription.ended(tx.now()).is_some() {
        let message = "A canceled subscription can only update its cancellation_details and metadata.";
        if cancel_at_period_end.is_some() || description.is_some() {
            return Err(ApiError::refused(message).code("invalid_canceled_subscription_fields"));
        }
    }
    metadata.apply(&mut subscription.metadata)?;
    subscription.description = description.unwrap_or(subscription.description);
    if let Some(cancel) = cancel_at_period_end {
        set_cancel_at_period_end(&mut subscription, cancel, tx.now());
    }
    Ok(saved(tx, subscription))
}

pub(crate) fn cancel(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let (mut comment, mut feedback) = (None, None);
    if let Some(mut details) = params.hash("cancellation_details")? {
        comment = details.text("comment")?;
        feedback = details.text("feedback")?;
        details.finish()?;
    }
    params.finish()?;
    let mut subscription: Subscription = named(tx, id)?;
    if subscription.ended(tx.now()).is_some() {
        return Err(ApiError::not_found("subscription", id));
    }
    subscription.cancellation_comment = comment;
    subscription.cancellation_feedback = feedback;
    let ended = end(tx, subscription);
    Ok(ended.render(&tx.view()))
}

/// Ends a subscription now.
pub(crate) fn end(tx: &mut Tx<'_>, mut subscription: Subscription) -> Subscription {
    subscription.ended_at = Some(tx.now());
    subscription.canceled_at = Some(tx.now());
    subscription.cancel_at = None;
    tx.put(subscription.clone());
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
    let created = params.time_range("created")?;
    params.finish()?;
    let now = tx.now();
    page_of::<Subscription>(tx.view(), &page, |subscription| {
        let state = subscription.status(now);
        let wanted = match status.as_deref() {
            // Without a status, all that are not canceled.
            None => state != "canceled",
            Some("all") => true,
            Some("ended") => state == "canceled",
            Some(status) => state == status,
        };
        wanted
            && created.contains(subscription.created)
            && customer.as_ref().is_none_or(|customer| subscription.customer == *customer)
            && price.as_ref().is_none_or(|price| subscription.items.iter().any(|item| item.price == *price))
            && collection_method.as_ref().is_none_or(|method| subscription.collection_method == *method)
    })
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone as _, Utc};

    use super::boundary;
    use crate::objects::prices::{Interval, Recurring};

    fn day(year: i32, month: u32, day: u32) -> i64 {
        Utc.with_ymd_and_hms(year, month, day, 12, 0, 0).single().map_or(0, |at| at.timestamp())
    }

    #[test]
    fn a_monthly_anchor_on_the_31st_is_clamped_and_comes_back() {
        let monthly = Recurring { interval: Interval::Month, count: 1 };
        let anchor = day(2026, 1, 31);
        let starts: Vec<i64> = (0..4).map(|index| boundary(anchor, &monthly, index)).collect();
        assert_eq!(starts, [anchor, day(2026, 2, 28), day(2026, 3, 31), day(2026, 4, 30)]);
    }
}
