//! Invoices made for items: making, filling and finalising one; all of a settlement.

use stripe_billing::{
    Invoice as StripeInvoice, InvoiceStatus,
    invoice::{
        AddLinesInvoice, AddLinesInvoiceLines, CreateInvoice, CreateInvoicePendingInvoiceItemsBehavior,
        FinalizeInvoiceInvoice, ListInvoice,
    },
};
use stripe_client_core::StripeRequest;

use super::{
    FoundInvoice, HttpClient, Pace, RequestError,
    items::{MAX_PAGES, PAGE, SEARCH_TIMEOUT, empty_page},
    once, parse_currency, unordered,
};
use crate::domain::invoice::{NewInvoice, SETTLEMENT_ID};

/// Creates an empty draft; returns its id.
pub(super) async fn create(
    client: &HttpClient,
    invoice: &NewInvoice,
    key: &str,
) -> Result<String, RequestError> {
    let mut request = CreateInvoice::new()
        .customer(&invoice.customer)
        .currency(parse_currency(&invoice.currency)?)
        .description(&invoice.description)
        .metadata(unordered(&invoice.metadata))
        .pending_invoice_items_behavior(CreateInvoicePendingInvoiceItemsBehavior::Exclude)
        .auto_advance(false);
    if let Some(subscription) = &invoice.subscription {
        request = request.subscription(subscription);
    }
    id(request.customize().request_strategy(once(key)?).send(client).await?)
}

/// Puts pending items on a draft.
pub(super) async fn add_items(
    client: &HttpClient,
    invoice_id: &str,
    item_ids: &[String],
    key: &str,
) -> Result<String, RequestError> {
    let lines: Vec<_> = item_ids
        .iter()
        .map(|id| AddLinesInvoiceLines { invoice_item: Some(id.clone()), ..AddLinesInvoiceLines::new() })
        .collect();
    let request = AddLinesInvoice::new(invoice_id, lines);
    id(request.customize().request_strategy(once(key)?).send(client).await?)
}

/// Finalises a draft, to be collected.
pub(super) async fn finalize(
    client: &HttpClient,
    invoice_id: &str,
    key: &str,
) -> Result<String, RequestError> {
    let request = FinalizeInvoiceInvoice::new(invoice_id).auto_advance(true);
    id(request.customize().request_strategy(once(key)?).send(client).await?)
}

/// Id of an invoice; only previews have none.
pub(super) fn id(invoice: StripeInvoice) -> Result<String, RequestError> {
    let id = invoice.id.ok_or_else(|| RequestError::Unreadable("an invoice without an id".to_owned()))?;
    Ok(id.to_string())
}

/// All of a customer's invoices of a settlement; an error where the listing has no end within bounds.
pub(super) async fn find_all(
    client: &HttpClient,
    customer: &str,
    settlement_id: &str,
    pace: &Pace,
) -> Result<Vec<FoundInvoice>, RequestError> {
    let search = look_through(client, customer, settlement_id, pace);
    tokio::time::timeout(SEARCH_TIMEOUT, search).await.unwrap_or(Err(RequestError::TooLong))
}

async fn look_through(
    client: &HttpClient,
    customer: &str,
    settlement_id: &str,
    pace: &Pace,
) -> Result<Vec<FoundInvoice>, RequestError> {
    let mut found = Vec::new();
    let mut list = ListInvoice::new().customer(customer).limit(PAGE);
    for turn in 0..MAX_PAGES {
        if turn > 0 {
            pace.wait().await;
        }
        let page = list.send(client).await?;
        let mut last = None;
        for invoice in page.data {
            let is_draft = invoice.status == Some(InvoiceStatus::Draft);
            let is_wanted = is_of(&invoice, settlement_id);
            let invoice_id = id(invoice)?;
            last = Some(invoice_id.clone());
            if is_wanted {
                found.push(FoundInvoice { invoice_id, is_draft });
            }
        }
        if !page.has_more {
            return Ok(found);
        }
        list = list.starting_after(last.ok_or_else(empty_page)?);
    }
    Err(RequestError::TooLong)
}

fn is_of(invoice: &StripeInvoice, settlement_id: &str) -> bool {
    invoice.metadata.as_ref().and_then(|m| m.get(SETTLEMENT_ID)).is_some_and(|id| id == settlement_id)
}
