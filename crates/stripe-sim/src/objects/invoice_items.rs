//! Invoice items: charges and credits that wait for an invoice or are on one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, page_of};
use crate::objects::customers::Customer;
use crate::objects::invoices::Invoice;
use crate::objects::money::{UnitAmount, check_amount, check_step, take_currency};
use crate::objects::prices::Price;
use crate::objects::subscriptions::{Item as SubscriptionItem, Subscription};
use crate::objects::{Kind, Object, Resource, announced, events, named, referenced, retold, saved};
use crate::state::State;
use crate::tx::Tx;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InvoiceItem {
    id: String,
    date: i64,
    pub(crate) customer: String,
    pub(crate) currency: String,
    pub(crate) amount: i64,
    unit_amount_decimal: String,
    quantity: u64,
    price: Option<String>,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    period: Period,
    discountable: bool,
    pub(crate) subscription: Option<String>,
    /// Pending while there is none.
    pub(crate) invoice: Option<String>,
    /// Made by a change of its subscription, for the rest of a period.
    #[serde(default)]
    proration: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Period {
    start: i64,
    end: i64,
}

impl Resource for InvoiceItem {
    const KIND: Kind = Kind::InvoiceItem;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn customer(&self) -> Option<&str> {
        Some(&self.customer)
    }

    fn render(&self, state: &State) -> Value {
        let parent = self.subscription.as_ref().map(|subscription| {
            json!({
                "subscription_details": { "subscription": subscription, "subscription_item": null },
                "type": "subscription_details",
            })
        });
        let customer = state.get::<Customer>(&self.customer);
        let test_clock = customer.and_then(|customer| customer.test_clock.as_ref());
        json!({
            "id": self.id,
            "object": "invoiceitem",
            "amount": self.amount,
            "currency": self.currency,
            "customer": self.customer,
            "date": self.date,
            "description": self.description,
            "discountable": self.discountable,
            "discounts": [],
            "invoice": self.invoice,
            "livemode": false,
            "metadata": self.metadata,
            "net_amount": self.amount,
            "parent": parent,
            "period": self.period,
            "pricing": self.render_pricing(state),
            "proration": self.proration,
            "quantity": self.quantity,
            "quantity_decimal": self.quantity.to_string(),
            "tax_rates": [],
            "test_clock": test_clock,
        })
    }
}

impl InvoiceItem {
    fn render_pricing(&self, state: &State) -> Value {
        let price = self.price.as_ref().and_then(|id| state.get::<Price>(id));
        json!({
            "price_details": price.map(|price| json!({ "price": price.id(), "product": price.product })),
            "type": "price_details",
            "unit_amount_decimal": self.unit_amount_decimal,
        })
    }

    /// Its form as a line of the invoice it is on.
    pub(crate) fn render_line(&self, state: &State) -> Value {
        json!({
            "id": self.id.replacen("ii_", "il_", 1),
            "object": "line_item",
            "amount": self.amount,
            "currency": self.currency,
            "description": self.description,
            "discount_amounts": [],
            "discountable": self.discountable,
            "discounts": [],
            "invoice": self.invoice,
            "livemode": false,
            "metadata": self.metadata,
            "parent": {
                "invoice_item_details": {
                    "invoice_item": self.id,
                    "proration": self.proration,
                    "proration_details": { "credited_items": null },
                    "subscription": self.subscription,
                },
                "subscription_item_details": null,
                "type": "invoice_item_details",
            },
            "period": self.period,
            "pretax_credit_amounts": [],
            "pricing": self.render_pricing(state),
            "quantity": self.quantity,
            "quantity_decimal": self.quantity.to_string(),
            "subscription": self.subscription,
            "subtotal": self.amount,
            "taxes": [],
        })
    }

    /// For the time from `from` to the end of the period, at the price of an item of the subscription.
    pub(crate) fn proration(
        tx: &mut Tx<'_>,
        subscription: &Subscription,
        item: &SubscriptionItem,
        amount: i64,
        description: String,
    ) -> Self {
        let now = tx.now();
        Self {
            id: tx.ids().next("ii"),
            date: now,
            customer: subscription.customer.clone(),
            currency: subscription.currency.clone(),
            amount,
            unit_amount_decimal: amount.to_string(),
            quantity: 1,
            price: Some(item.price.clone()),
            description: Some(description),
            metadata: BTreeMap::new(),
            period: Period { start: now, end: subscription.current_period().end },
            discountable: false,
            subscription: Some(subscription.id().to_owned()),
            invoice: None,
            proration: true,
        }
    }

    /// Whether it waits for an invoice in `currency`.
    pub(crate) fn is_pending(&self, currency: &str) -> bool {
        self.invoice.is_none() && self.currency == currency
    }
}

/// What an item costs, as a request says it.
enum Cost {
    Amount(i64),
    Units { unit_amount_decimal: String, quantity: u64 },
    Price { id: String, quantity: u64 },
}

impl Cost {
    fn take(params: &mut Params) -> Result<Option<Self>, ApiError> {
        let amount = params.integer("amount")?;
        let unit = UnitAmount::take(params, "unit_amount_decimal")?;
        let price = match params.hash("pricing")? {
            Some(mut pricing) => {
                let price = pricing.required("price")?;
                pricing.finish()?;
                Some(price)
            }
            None => None,
        };
        let quantity = params.integer_within("quantity", 0..=999_999_999)?;
        let count = quantity.and_then(|quantity| u64::try_from(quantity).ok()).unwrap_or(1);
        match (amount, unit, price) {
            (None, None, None) if quantity.is_some() => Err(params.missing("unit_amount_decimal")),
            (None, None, None) => Ok(None),
            (Some(_), None, None) if quantity.is_some() => Err(params.exclusive(&["amount", "quantity"])),
            (Some(amount), None, None) => Ok(Some(Self::Amount(check_amount(amount.into(), "amount")?))),
            (None, Some(unit_amount_decimal), None) => {
                Ok(Some(Self::Units { unit_amount_decimal, quantity: count }))
            }
            (None, None, Some(id)) => Ok(Some(Self::Price { id, quantity: count })),
            _ => Err(params.exclusive(&["amount", "unit_amount_decimal", "pricing"])),
        }
    }

    /// Writes the cost into the item; its currency must be set already.
    fn apply(self, tx: &Tx<'_>, item: &mut InvoiceItem) -> Result<(), ApiError> {
        let (unit, quantity) = match self {
            Self::Amount(amount) => {
                item.amount = amount;
                item.unit_amount_decimal = amount.to_string();
                item.quantity = 1;
                item.price = None;
                return Ok(());
            }
            Self::Units { unit_amount_decimal, quantity } => {
                item.price = None;
                (unit_amount_decimal, quantity)
            }
            Self::Price { id, quantity } => {
                let price = one_time_price(tx, &id)?;
                item.price = Some(id);
                (price.unit_amount_decimal, quantity)
            }
        };
        let amount = UnitAmount::parse(&unit).and_then(|unit| unit.times(quantity));
        item.amount = check_amount(amount.unwrap_or(i128::MAX), "unit_amount_decimal")?;
        item.unit_amount_decimal = unit;
        item.quantity = quantity;
        Ok(())
    }
}

fn one_time_price(tx: &Tx<'_>, id: &str) -> Result<Price, ApiError> {
    let price: Price = referenced(tx, id, "pricing[price]")?;
    if price.recurring.is_some() || !price.active {
        let message = format!("The price '{id}' must be active and of type one_time.");
        return Err(ApiError::refused(message).param("pricing[price]"));
    }
    Ok(price)
}

fn take_period(params: &mut Params) -> Result<Option<Period>, ApiError> {
    let Some(mut hash) = params.hash("period")? else {
        return Ok(None);
    };
    let start = hash.timestamp("start")?.ok_or_else(|| hash.missing("start"))?;
    let end = hash.timestamp("end")?.ok_or_else(|| hash.missing("end"))?;
    if end < start {
        return Err(hash.wrong("end", "The end of a period must be on or after its start."));
    }
    hash.finish()?;
    Ok(Some(Period { start, end }))
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required("customer")?;
    let cost = Cost::take(&mut params)?.ok_or_else(|| params.missing("amount"))?;
    let currency = take_currency(&mut params)?;
    let description = params.text("description")?;
    let metadata = params.metadata()?;
    let period = take_period(&mut params)?;
    let discountable = params.boolean("discountable")?;
    let subscription = params.text("subscription")?;
    let invoice = params.text("invoice")?;
    if currency.is_none() && !matches!(cost, Cost::Price { .. }) {
        return Err(params.missing("currency"));
    }
    params.finish()?;

    let mut customer = Customer::referenced(tx, &customer)?;
    customer.check_not_declined()?;
    let currency = settle_currency(tx, &cost, currency)?;
    customer.bind_currency(tx, &currency)?;
    if let Some(id) = &subscription {
        check_subscription(tx, id, customer.id())?;
    }
    let now = tx.now();
    let mut item = InvoiceItem {
        id: tx.ids().next("ii"),
        date: now,
        customer: customer.id().to_owned(),
        currency,
        amount: 0,
        unit_amount_decimal: String::new(),
        quantity: 1,
        price: None,
        description,
        metadata: BTreeMap::new(),
        period: period.unwrap_or(Period { start: now, end: now }),
        discountable: true,
        subscription,
        invoice: None,
        proration: false,
    };
    metadata.apply(&mut item.metadata)?;
    cost.apply(tx, &mut item)?;
    check_step(item.amount, &item.currency, "amount")?;
    item.discountable = discountable.unwrap_or(item.amount >= 0);
    let Some(id) = invoice else {
        return Ok(announced(tx, item, "invoiceitem.created"));
    };
    let mut invoice: Invoice = referenced(tx, &id, "invoice")?;
    on_invoice(tx, Some(&id), |tx| {
        invoice.attach(&mut item)?;
        tx.put(invoice);
        Ok(announced(tx, item, "invoiceitem.created"))
    })
}

/// Changes an item, and tells of the invoice it is on if there is one.
fn on_invoice<R>(
    tx: &mut Tx<'_>,
    invoice: Option<&str>,
    work: impl FnOnce(&mut Tx<'_>) -> Result<R, ApiError>,
) -> Result<R, ApiError> {
    match invoice {
        Some(id) => retold::<Invoice, R>(tx, id, "invoice.updated", work),
        None => work(tx),
    }
}

/// The price's currency, which the one asked for must not contradict.
fn settle_currency(tx: &Tx<'_>, cost: &Cost, asked: Option<String>) -> Result<String, ApiError> {
    let Cost::Price { id, .. } = cost else {
        return asked.ok_or_else(|| ApiError::refused("A currency is needed.").param("currency"));
    };
    let price = one_time_price(tx, id)?;
    match asked {
        Some(currency) if currency != price.currency => {
            let message = format!("The price '{id}' is in {}, not {currency}.", price.currency);
            Err(ApiError::refused(message).param("currency"))
        }
        _ => Ok(price.currency),
    }
}

fn check_subscription(tx: &Tx<'_>, id: &str, customer: &str) -> Result<(), ApiError> {
    let subscription: Subscription = referenced(tx, id, "subscription")?;
    if !subscription.is_of(customer) {
        let message = format!("The customer '{customer}' does not have a subscription '{id}'.");
        return Err(ApiError::refused(message).code("resource_missing").param("subscription"));
    }
    if subscription.is_over() {
        let message = format!("The subscription '{id}' is canceled and takes no more invoice items.");
        return Err(ApiError::refused(message).param("subscription"));
    }
    Ok(())
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<InvoiceItem>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let cost = Cost::take(&mut params)?;
    let description = params.clearable("description")?;
    let metadata = params.metadata()?;
    let period = take_period(&mut params)?;
    let discountable = params.boolean("discountable")?;
    params.finish()?;
    let mut item: InvoiceItem = named(tx, id)?;
    check_open_to_change(tx, &item)?;
    if let Some(cost) = cost {
        let currency = settle_currency(tx, &cost, Some(item.currency.clone()))?;
        item.currency = currency;
        cost.apply(tx, &mut item)?;
    }
    metadata.apply(&mut item.metadata)?;
    item.description = description.unwrap_or(item.description);
    item.period = period.unwrap_or(item.period);
    item.discountable = discountable.unwrap_or(item.discountable);
    let invoice = item.invoice.clone();
    on_invoice(tx, invoice.as_deref(), |tx| Ok(saved(tx, item)))
}

pub(crate) fn delete(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let item: InvoiceItem = named(tx, id)?;
    check_open_to_change(tx, &item)?;
    on_invoice(tx, item.invoice.as_deref(), |tx| {
        let form = item.render(tx.state());
        if let Some(invoice) = &item.invoice {
            let mut invoice: Invoice = named(tx, invoice)?;
            invoice.detach(id);
            tx.put(invoice);
        }
        tx.remove::<InvoiceItem>(id);
        events::emit(tx, "invoiceitem.deleted", &form, None);
        Ok(json!({ "id": id, "object": "invoiceitem", "deleted": true }))
    })
}

/// An item on an invoice can change only while that is a draft.
fn check_open_to_change(tx: &Tx<'_>, item: &InvoiceItem) -> Result<(), ApiError> {
    match &item.invoice {
        Some(invoice) => named::<Invoice>(tx, invoice)?.check_draft(),
        None => Ok(()),
    }
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let customer = params.text("customer")?;
    let invoice = params.text("invoice")?;
    let pending = params.boolean("pending")?;
    let created = params.time_range("created")?;
    params.finish()?;
    // The items of an invoice are among those of its customer.
    let of_invoice = invoice.as_deref().and_then(|id| tx.state().get::<Invoice>(id));
    let owner = customer.as_deref().or_else(|| of_invoice.map(|it| it.customer.as_str()));
    page_of::<InvoiceItem>(tx.state(), &page, owner, |item| {
        created.contains(item.date)
            && (invoice.is_none() || item.invoice == invoice)
            && pending.is_none_or(|pending| item.invoice.is_none() == pending)
    })
}
