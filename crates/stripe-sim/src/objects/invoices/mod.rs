//! Invoices: drafts that take items, finalised ones that no longer change.

mod add_lines;
mod form;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::lists::{Page, list as list_form, page_of};
use crate::objects::customers::Customer;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::money::take_currency;
use crate::objects::subscriptions::{Collection, Subscription};
use crate::objects::{Resource as _, named, referenced, saved};
use crate::state::{Tx, View};

pub(crate) use add_lines::add_lines;

const MAX_ITEMS: usize = 250;
/// What a customer without a currency is invoiced in: the account's own.
const ACCOUNT_CURRENCY: &str = "usd";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Invoice {
    id: String,
    created: i64,
    customer: String,
    currency: String,
    subscription: Option<String>,
    status: Status,
    /// Its items' ids, in the order of its lines.
    items: Vec<String>,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    auto_advance: bool,
    collection_method: String,
    days_until_due: Option<i64>,
    number: Option<String>,
    finalized_at: Option<i64>,
    paid_at: Option<i64>,
    voided_at: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Draft,
    Open,
    Paid,
    Void,
}

impl Invoice {
    fn items<'a>(&'a self, view: &View<'a>) -> impl Iterator<Item = &'a InvoiceItem> {
        let state = view.state;
        self.items.iter().filter_map(move |id| state.get::<InvoiceItem>(id))
    }

    fn total(&self, view: &View<'_>) -> i64 {
        self.items(view).map(|item| item.amount).sum()
    }

    fn lines_url(&self) -> String {
        format!("/v1/invoices/{}/lines", self.id)
    }

    pub(crate) fn check_draft(&self) -> Result<(), ApiError> {
        if self.status == Status::Draft {
            return Ok(());
        }
        let message = format!("The invoice '{}' is no longer editable: it is finalized.", self.id);
        Err(ApiError::refused(message).code("invoice_not_editable").param("invoice"))
    }

    /// Puts an item on the draft.
    pub(crate) fn attach(&mut self, item: &mut InvoiceItem) -> Result<(), ApiError> {
        self.check_draft()?;
        let refuse = |message: String| Err(ApiError::refused(message).param("invoice"));
        if self.customer != item.customer {
            return refuse(format!("The invoice '{}' is of another customer.", self.id));
        }
        if self.currency != item.currency {
            return refuse(format!(
                "The invoice '{}' is in {}, the item in {}.",
                self.id, self.currency, item.currency
            ));
        }
        if self.items.len() >= MAX_ITEMS {
            return refuse(format!("An invoice can have up to {MAX_ITEMS} items."));
        }
        item.invoice = Some(self.id.clone());
        self.items.push(item.id().to_owned());
        Ok(())
    }

    pub(crate) fn detach(&mut self, item: &str) {
        self.items.retain(|id| id != item);
    }
}

pub(crate) fn create(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required("customer")?;
    let currency = take_currency(&mut params)?;
    let subscription = params.text("subscription")?;
    let behavior = params.one_of("pending_invoice_items_behavior", &["exclude", "include"])?;
    let auto_advance = params.boolean("auto_advance")?.unwrap_or(false);
    let collection = Collection::take(&mut params)?;
    let description = params.text("description")?;
    let metadata = params.metadata()?;
    params.finish()?;

    let mut customer = Customer::referenced(tx, &customer)?;
    if let Some(id) = &subscription
        && !referenced::<Subscription>(tx, id, "subscription")?.is_of(customer.id())
    {
        return Err(ApiError::missing("subscription", id, "subscription"));
    }
    let currency = currency
        .or_else(|| customer.currency().map(str::to_owned))
        .unwrap_or_else(|| ACCOUNT_CURRENCY.to_owned());
    customer.bind_currency(tx, &currency)?;
    let mut invoice = Invoice {
        id: tx.ids().next("in"),
        created: tx.now(),
        customer: customer.id().to_owned(),
        currency,
        subscription,
        status: Status::Draft,
        items: Vec::new(),
        description,
        metadata: BTreeMap::new(),
        auto_advance,
        collection_method: collection.method,
        days_until_due: collection.days_until_due,
        number: None,
        finalized_at: None,
        paid_at: None,
        voided_at: None,
    };
    metadata.apply(&mut invoice.metadata)?;
    let include = match behavior.as_deref() {
        Some(behavior) => behavior == "include",
        None => invoice.subscription.is_some(),
    };
    if include {
        pull_pending_items(tx, &mut invoice)?;
    }
    Ok(saved(tx, invoice))
}

/// Takes what is pending: of the invoice's subscription if it has one, else all of the customer.
/// The oldest 250 are taken; their lines are newest first.
fn pull_pending_items(tx: &mut Tx<'_>, invoice: &mut Invoice) -> Result<(), ApiError> {
    let mut pending: Vec<InvoiceItem> = tx
        .state()
        .all::<InvoiceItem>()
        .filter(|item| item.is_pending(&invoice.customer, &invoice.currency))
        .filter(|item| invoice.subscription.is_none() || item.subscription == invoice.subscription)
        .take(MAX_ITEMS)
        .cloned()
        .collect();
    if pending.is_empty() {
        let (whose, code) = match invoice.subscription {
            Some(_) => ("subscription", "invoice_no_subscription_line_items"),
            None => ("customer", "invoice_no_customer_line_items"),
        };
        let message = format!("Nothing to invoice: the {whose} has no pending invoice items.");
        return Err(ApiError::refused(message).code(code));
    }
    pending.reverse();
    for mut item in pending {
        invoice.attach(&mut item)?;
        tx.put(item);
    }
    Ok(())
}

pub(crate) fn retrieve(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    Ok(named::<Invoice>(tx, id)?.render(&tx.view()))
}

pub(crate) fn update(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let auto_advance = params.boolean("auto_advance")?;
    let description = params.clearable("description")?;
    let metadata = params.metadata()?;
    params.finish()?;
    let mut invoice: Invoice = named(tx, id)?;
    if description.is_some() {
        invoice.check_draft()?;
    }
    metadata.apply(&mut invoice.metadata)?;
    invoice.auto_advance = auto_advance.unwrap_or(invoice.auto_advance);
    invoice.description = description.unwrap_or(invoice.description);
    Ok(saved(tx, invoice))
}

/// A draft becomes open, or paid at once when nothing is due.
pub(crate) fn finalize(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let auto_advance = params.boolean("auto_advance")?;
    params.finish()?;
    let mut invoice: Invoice = named(tx, id)?;
    if invoice.status != Status::Draft {
        let message = "This invoice is already finalized, you can't finalize it again.";
        return Err(ApiError::refused(message).code("invoice_not_editable"));
    }
    let mut customer = Customer::referenced(tx, &invoice.customer)?;
    invoice.number = Some(customer.next_invoice_number(tx));
    invoice.auto_advance = auto_advance.unwrap_or(invoice.auto_advance);
    invoice.finalized_at = Some(tx.now());
    if invoice.total(&tx.view()) > 0 {
        invoice.status = Status::Open;
    } else {
        invoice.status = Status::Paid;
        invoice.paid_at = Some(tx.now());
    }
    Ok(saved(tx, invoice))
}

pub(crate) fn pay(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let mut invoice = open(tx, id)?;
    Customer::referenced(tx, &invoice.customer)?.check_not_declined()?;
    invoice.status = Status::Paid;
    invoice.paid_at = Some(tx.now());
    Ok(saved(tx, invoice))
}

pub(crate) fn void(tx: &mut Tx<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish()?;
    let mut invoice = open(tx, id)?;
    invoice.status = Status::Void;
    invoice.voided_at = Some(tx.now());
    Ok(saved(tx, invoice))
}

fn open(tx: &Tx<'_>, id: &str) -> Result<Invoice, ApiError> {
    let invoice: Invoice = named(tx, id)?;
    if invoice.status == Status::Open {
        return Ok(invoice);
    }
    let message = format!("The invoice '{id}' is not open.");
    Err(ApiError::refused(message).code("status_transition_invalid"))
}

pub(crate) fn lines(tx: &mut Tx<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    params.finish()?;
    let invoice: Invoice = named(tx, id)?;
    let view = tx.view();
    let lines: Vec<Value> = invoice.items(&view).map(|item| item.render_line(&view)).collect();
    let (lines, has_more) = page.cut(lines, "line_item", |line| line["id"].as_str().unwrap_or(""))?;
    Ok(list_form(&invoice.lines_url(), lines, has_more))
}

pub(crate) fn list(tx: &mut Tx<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::take(&mut params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let status =
        match params.one_of("status", &["draft", "open", "paid", "uncollectible", "void"])?.as_deref() {
            None => None,
            Some("draft") => Some(vec![Status::Draft]),
            Some("open") => Some(vec![Status::Open]),
            Some("paid") => Some(vec![Status::Paid]),
            Some("void") => Some(vec![Status::Void]),
            // No invoice gets that far here.
            Some(_) => Some(Vec::new()),
        };
    let created = params.time_range("created")?;
    params.finish()?;
    page_of::<Invoice>(tx.view(), &page, |invoice| {
        created.contains(invoice.created)
            && customer.as_ref().is_none_or(|customer| invoice.customer == *customer)
            && (subscription.is_none() || invoice.subscription == subscription)
            && status.as_ref().is_none_or(|status| status.contains(&invoice.status))
    })
}
