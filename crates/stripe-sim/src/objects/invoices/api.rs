//! The endpoints of invoices.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, list as list_form, page_of};
use crate::objects::customers::Customer;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::invoices::{Invoice, Reason, Status, collect};
use crate::objects::money::take_currency;
use crate::objects::subscriptions::{Collection, Subscription};
use crate::objects::{Resource as _, announced, changed, events, named, referenced};
use crate::tx::Tx;

/// What a customer without a currency is invoiced in: the account's own.
const ACCOUNT_CURRENCY: &str = "usd";
/// New invoices of one subscription in a minute and in a day.
const PER_MINUTE: usize = 10;
const PER_DAY: usize = 20;

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required("customer")?;
    let currency = take_currency(&mut params)?;
    let subscription = params.text("subscription")?;
    let behavior = params.one_of("pending_invoice_items_behavior", &["exclude", "include"])?;
    let auto_advance = params.boolean("auto_advance")?.unwrap_or(false);
    let finalizes_at = params.timestamp("automatically_finalizes_at")?;
    let collection = Collection::take(&mut params)?;
    let description = params.text("description")?;
    let metadata = params.metadata()?;
    params.finish()?;

    let mut customer = Customer::referenced(tx, &customer)?;
    if let Some(id) = &subscription {
        if !referenced::<Subscription>(tx, id, "subscription")?.is_of(customer.id()) {
            return Err(ApiError::missing("subscription", id, "subscription"));
        }
        check_pace(tx, customer.id(), id)?;
    }
    let currency = currency
        .or_else(|| customer.currency().map(str::to_owned))
        .unwrap_or_else(|| ACCOUNT_CURRENCY.to_owned());
    customer.bind_currency(tx, &currency)?;
    let mut invoice = Invoice::empty(tx, &customer, currency, subscription, collection);
    invoice.description = description;
    metadata.apply(&mut invoice.metadata)?;
    schedule(tx, &mut invoice, Some(auto_advance), finalizes_at)?;
    let include = match behavior.as_deref() {
        Some(behavior) => behavior == "include",
        None => invoice.subscription.is_some(),
    };
    if include {
        pull_pending_items(tx, &mut invoice)?;
    }
    Ok(announced(tx, invoice, "invoice.created"))
}

/// Stripe makes so many invoices of one subscription and no more.
fn check_pace(tx: &Tx<'_>, customer: &str, subscription: &str) -> Result<(), ApiError> {
    let since = |seconds: i64| {
        let invoices = tx.state().of_customer::<Invoice>(customer);
        invoices
            .filter(|it| it.subscription.as_deref() == Some(subscription) && it.created > tx.now() - seconds)
            .count()
    };
    if since(60) < PER_MINUTE && since(86_400) < PER_DAY {
        return Ok(());
    }
    let message = format!("More than {PER_MINUTE} invoices a minute or {PER_DAY} a day for a subscription.");
    let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "invalid_request_error", message);
    Err(ApiError { executed: false, ..error.code("rate_limit") })
}

fn schedule(
    tx: &Tx<'_>,
    invoice: &mut Invoice,
    auto_advance: Option<bool>,
    finalizes_at: Option<i64>,
) -> Result<(), ApiError> {
    if let Some(at) = finalizes_at {
        if at <= tx.now() || auto_advance == Some(false) {
            let message = "automatically_finalizes_at must be in the future, and auto_advance true.";
            return Err(ApiError::refused(message).param("automatically_finalizes_at"));
        }
        invoice.finalizes_at = Some(at);
        invoice.scheduled = true;
    }
    if let Some(auto_advance) = auto_advance {
        invoice.set_auto_advance(auto_advance, tx.now());
    }
    Ok(())
}

/// Takes what is pending: of the invoice's subscription if it has one, else all of the customer.
fn pull_pending_items(tx: &mut Tx<'_>, invoice: &mut Invoice) -> Result<(), ApiError> {
    let subscription = invoice.subscription.clone();
    let own = |item: &InvoiceItem| subscription.is_none() || item.subscription == subscription;
    if invoice.pull(tx, own)? > 0 {
        return Ok(());
    }
    let (whose, code) = match subscription {
        Some(_) => ("subscription", "invoice_no_subscription_line_items"),
        None => ("customer", "invoice_no_customer_line_items"),
    };
    let message = format!("Nothing to invoice: the {whose} has no pending invoice items.");
    Err(ApiError::refused(message).code(code))
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Invoice>(tx, id)?.render(tx.state()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let auto_advance = params.boolean("auto_advance")?;
    let finalizes_at = params.timestamp("automatically_finalizes_at")?;
    let description = params.clearable("description")?;
    let metadata = params.metadata()?;
    params.finish()?;
    let mut invoice: Invoice = named(tx, id)?;
    if description.is_some() || finalizes_at.is_some() {
        invoice.check_draft()?;
    }
    metadata.apply(&mut invoice.metadata)?;
    match (invoice.status, auto_advance) {
        (Status::Draft, _) => schedule(tx, &mut invoice, auto_advance, finalizes_at)?,
        (Status::Open, Some(auto_advance)) => invoice.collect_by_itself(auto_advance, tx.now()),
        (_, Some(true)) => {
            let message = "Only a draft or an open invoice can advance by itself.";
            return Err(ApiError::refused(message).param("auto_advance"));
        }
        _ => {}
    }
    invoice.description = description.unwrap_or(invoice.description);
    Ok(changed(tx, invoice, "invoice.updated"))
}

/// Only a draft that was made by request. What was on it is pending again.
pub(crate) fn delete(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let invoice: Invoice = named(tx, id)?;
    if invoice.status != Status::Draft || invoice.reason != Reason::Manual {
        let message = "Only drafts that were not made by a subscription can be deleted: void it.";
        return Err(ApiError::refused(message).code("invoice_not_editable"));
    }
    let form = invoice.render(tx.state());
    for item in invoice.item_ids() {
        let mut item: InvoiceItem = named(tx, item)?;
        item.invoice = None;
        tx.put(item);
    }
    tx.remove::<Invoice>(id);
    events::emit(tx, "invoice.deleted", &form, None);
    Ok(json!({ "id": id, "object": "invoice", "deleted": true }))
}

pub(crate) fn finalize(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let auto_advance = params.boolean("auto_advance")?;
    params.finish()?;
    let mut invoice: Invoice = named(tx, id)?;
    if invoice.status != Status::Draft {
        let message = "This invoice is already finalized, you can't finalize it again.";
        return Err(ApiError::refused(message).code("invoice_not_editable"));
    }
    Customer::referenced(tx, &invoice.customer)?;
    invoice.collect_by_itself(auto_advance.unwrap_or(invoice.auto_advance), tx.now());
    let invoice = collect::finalize(tx, invoice);
    Ok(invoice.render(tx.state()))
}

pub(crate) fn pay(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let out_of_band = params.boolean("paid_out_of_band")?.unwrap_or(false);
    params.finish()?;
    let invoice = unpaid(tx, id)?;
    let paid = if out_of_band {
        collect::pay_out_of_band(tx, invoice);
        true
    } else {
        Customer::referenced(tx, &invoice.customer)?;
        collect::attempt(tx, invoice, false).1
    };
    if !paid {
        // The attempt has happened, and is told of.
        return Err(ApiError { keeps: true, ..ApiError::card_declined() });
    }
    Ok(named::<Invoice>(tx, id)?.render(tx.state()))
}

pub(crate) fn void(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let invoice = unpaid(tx, id)?;
    Ok(collect::void(tx, invoice))
}

pub(crate) fn mark_uncollectible(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let invoice = unpaid(tx, id)?;
    Ok(collect::mark_uncollectible(tx, invoice))
}

fn unpaid(tx: &Tx<'_>, id: &str) -> Result<Invoice, ApiError> {
    let invoice: Invoice = named(tx, id)?;
    if matches!(invoice.status, Status::Open | Status::Uncollectible) {
        return Ok(invoice);
    }
    let message = format!("The invoice '{id}' is not open.");
    Err(ApiError::refused(message).code("status_transition_invalid"))
}

pub(crate) fn lines(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    params.finish()?;
    let invoice: Invoice = named(tx, id)?;
    let state = tx.state();
    let lines: Vec<Value> = invoice.render_each_line(state).collect();
    let (lines, has_more) = page.cut(lines, "line_item", |line| line["id"].as_str().unwrap_or(""))?;
    Ok(list_form(&invoice.lines_url(), lines, has_more))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let collection_method = params.one_of("collection_method", &["charge_automatically", "send_invoice"])?;
    let status = params.one_of("status", &["draft", "open", "paid", "uncollectible", "void"])?;
    let created = params.time_range("created")?;
    params.finish()?;
    // The invoices of a subscription are among those of its customer.
    let of_subscription = subscription.as_deref().and_then(|id| tx.state().get::<Subscription>(id));
    let owner = customer.as_deref().or_else(|| of_subscription.map(|it| it.customer.as_str()));
    page_of::<Invoice>(tx.state(), &page, owner, |invoice| {
        created.contains(invoice.created)
            && (subscription.is_none() || invoice.subscription == subscription)
            && collection_method.as_ref().is_none_or(|method| invoice.collection_method == *method)
            && status.as_ref().is_none_or(|status| json!(invoice.status) == status.as_str())
    })
}
