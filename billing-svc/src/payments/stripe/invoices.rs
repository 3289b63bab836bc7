//! Invoices made for items: making, filling and finalising one; all of a settlement; what all are to their items.

use std::collections::HashMap;

use stripe_billing::{
    Invoice as StripeInvoice, InvoiceStatus,
    invoice::{
        AddLinesInvoice, AddLinesInvoiceLines, CreateInvoice, CreateInvoicePendingInvoiceItemsBehavior,
        FinalizeInvoiceInvoice, ListInvoice,
    },
};

use super::{
    FoundInvoice, HttpClient, Pace, Place, RequestError,
    books::time,
    listing::look_through,
    parse_currency,
    reading::{Made, made},
    unordered,
};
use crate::domain::invoice::{NewInvoice, SETTLEMENT_ID};

/// Creates an empty draft; returns its id.
pub(super) async fn create(
    client: &HttpClient,
    invoice: &NewInvoice,
    key: &str,
) -> Result<Made, RequestError> {
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
    made(client, request, key).await
}

/// Puts pending items on a draft.
pub(super) async fn add_items(
    client: &HttpClient,
    invoice_id: &str,
    item_ids: &[String],
    key: &str,
) -> Result<Made, RequestError> {
    let lines: Vec<_> = item_ids
        .iter()
        .map(|id| AddLinesInvoiceLines { invoice_item: Some(id.clone()), ..AddLinesInvoiceLines::new() })
        .collect();
    let request = AddLinesInvoice::new(invoice_id, lines);
    made(client, request, key).await
}

/// Finalises a draft, to be collected.
pub(super) async fn finalize(client: &HttpClient, invoice_id: &str, key: &str) -> Result<Made, RequestError> {
    let request = FinalizeInvoiceInvoice::new(invoice_id).auto_advance(true);
    made(client, request, key).await
}

/// Id of an invoice; only previews have none.
pub(super) fn id(invoice: &StripeInvoice) -> Result<String, RequestError> {
    let id = invoice.id.as_ref().map(ToString::to_string);
    id.ok_or_else(|| RequestError::Unreadable("an invoice without an id".to_owned()))
}

/// All of a customer's invoices of a settlement; an error where the listing has no end within bounds.
pub(super) async fn find_all(
    client: &HttpClient,
    customer: &str,
    settlement_id: &str,
    pace: &Pace,
) -> Result<Vec<FoundInvoice>, RequestError> {
    let list = ListInvoice::new().customer(customer);
    let found = look_through(client, list, pace, |invoice| is_of(invoice, settlement_id)).await?;
    let invoices = found.iter().map(|invoice| {
        Ok(FoundInvoice { invoice_id: id(invoice)?, is_draft: invoice.status == Some(InvoiceStatus::Draft) })
    });
    invoices.collect()
}

/// What an item's place is on each of a customer's invoices; likewise.
pub(super) async fn places(
    client: &HttpClient,
    customer: &str,
    pace: &Pace,
) -> Result<HashMap<String, Place>, RequestError> {
    let invoices = look_through(client, ListInvoice::new().customer(customer), pace, |_| true).await?;
    invoices.iter().map(|invoice| Ok((id(invoice)?, place(invoice)?))).collect()
}

fn place(invoice: &StripeInvoice) -> Result<Place, RequestError> {
    match invoice.status {
        Some(InvoiceStatus::Open | InvoiceStatus::Paid | InvoiceStatus::Uncollectible) => Ok(Place::Final),
        Some(InvoiceStatus::Void) => Ok(Place::Void),
        Some(InvoiceStatus::Draft) => {
            let details = invoice.parent.as_ref().and_then(|parent| parent.subscription_details.as_ref());
            let metadata = invoice.metadata.as_ref();
            Ok(Place::Draft {
                subscription: details.map(|details| details.subscription.id().to_string()),
                goes_on: invoice.auto_advance.unwrap_or_default(),
                is_ours: metadata.is_some_and(|metadata| metadata.contains_key(SETTLEMENT_ID)),
                created: time(invoice.created)?,
            })
        }
        ref other => Err(RequestError::Unreadable(format!("an invoice with the status {other:?}"))),
    }
}

fn is_of(invoice: &StripeInvoice, settlement_id: &str) -> bool {
    invoice.metadata.as_ref().and_then(|m| m.get(SETTLEMENT_ID)).is_some_and(|id| id == settlement_id)
}
