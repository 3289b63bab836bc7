//! What a subscription costs, how often, and how it is collected.

use std::collections::BTreeMap;

use chrono::{DateTime, Months};

use crate::http::error::ApiError;
use crate::http::forms::{MetadataChange, Params};
use crate::objects::prices::{Interval, Price, Recurring};
use crate::objects::referenced;
use crate::objects::subscriptions::Item;
use crate::tx::Tx;

pub(super) const MAX_ITEMS: usize = 20;

/// An item as a request to create a subscription has it.
#[derive(Clone, Debug)]
pub(crate) struct AskedItem {
    price: String,
    quantity: i64,
    metadata: MetadataChange,
}

impl AskedItem {
    pub(super) fn take_all(params: &mut Params, field: &str) -> Result<Vec<Self>, ApiError> {
        let asked: Vec<Self> = params.hashes(field)?.into_iter().map(Self::take).collect::<Result<_, _>>()?;
        if asked.is_empty() {
            return Err(params.missing(field));
        }
        if asked.len() > MAX_ITEMS {
            let message = format!("A subscription can have up to {MAX_ITEMS} items.");
            return Err(params.wrong(field, message));
        }
        Ok(asked)
    }

    fn take(mut params: Params) -> Result<Self, ApiError> {
        let item = Self {
            price: params.required("price")?,
            quantity: take_quantity(&mut params)?.unwrap_or(1),
            metadata: params.metadata()?,
        };
        params.finish()?;
        Ok(item)
    }

    pub(crate) fn new(price: String, quantity: i64) -> Self {
        Self { price, quantity, metadata: MetadataChange::Keep }
    }

    pub(super) fn build(self, tx: &mut Tx<'_>) -> Result<Item, ApiError> {
        let mut metadata = BTreeMap::new();
        self.metadata.apply(&mut metadata)?;
        let id = tx.ids().next("si");
        Ok(Item { id, price: self.price, quantity: self.quantity, metadata })
    }
}

pub(super) fn take_quantity(params: &mut Params) -> Result<Option<i64>, ApiError> {
    params.integer_within("quantity", 0..=999_999_999)
}

/// The one currency and interval of all prices.
pub(super) fn agreed<'a>(
    tx: &Tx<'_>,
    prices: impl Iterator<Item = &'a str>,
    currency: Option<&str>,
) -> Result<(String, Recurring), ApiError> {
    let mut terms: Option<(String, Recurring)> = None;
    for (index, id) in prices.enumerate() {
        let param = format!("items[{index}][price]");
        let price: Price = referenced(tx, id, &param)?;
        if !price.active {
            let message = format!("The price '{id}' is inactive.");
            return Err(ApiError::refused(message).param(&param));
        }
        let Some(recurring) = price.recurring else {
            let message = format!("The price '{id}' is not recurring.");
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

impl AskedItem {
    pub(super) fn price(&self) -> &str {
        &self.price
    }
}

/// How what is due is collected; invoices have the same two parameters.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    pub(crate) method: String,
    pub(crate) days_until_due: Option<i64>,
}

impl Collection {
    pub(crate) const AUTOMATIC: &str = "charge_automatically";

    pub(crate) fn take(params: &mut Params) -> Result<Self, ApiError> {
        let method = params
            .one_of("collection_method", &[Self::AUTOMATIC, "send_invoice"])?
            .unwrap_or_else(|| Self::AUTOMATIC.to_owned());
        let days_until_due = params.integer_within("days_until_due", 0..=3650)?;
        match (method.as_str(), days_until_due) {
            ("send_invoice", None) => Err(params.missing("days_until_due")),
            (Self::AUTOMATIC, Some(_)) => {
                Err(params.wrong("days_until_due", "days_until_due needs collection_method=send_invoice."))
            }
            _ => Ok(Self { method, days_until_due }),
        }
    }

    pub(crate) fn automatic() -> Self {
        Self { method: Self::AUTOMATIC.to_owned(), days_until_due: None }
    }
}

/// The start of period `index`. Months are counted from the anchor, so a 31st comes back.
pub(super) fn boundary(anchor: i64, recurring: &Recurring, index: u32) -> i64 {
    let count = recurring.count.saturating_mul(index);
    let months = match recurring.interval {
        Interval::Day => return anchor + i64::from(count) * 86_400,
        Interval::Week => return anchor + i64::from(count) * 7 * 86_400,
        Interval::Month => count,
        Interval::Year => count.saturating_mul(12),
    };
    DateTime::from_timestamp(anchor, 0)
        .and_then(|anchor| anchor.checked_add_months(Months::new(months)))
        .map_or(i64::MAX, |start| start.timestamp())
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
