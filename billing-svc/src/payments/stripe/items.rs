//! Invoice items: making one, all of a charge, where all are, and deleting one.

use stripe_billing::invoice_item::{
    CreateInvoiceItem, DeleteInvoiceItem, ListInvoiceItem, RetrieveInvoiceItem,
};
use stripe_client_core::StripeRequest;

use super::{
    FoundItem, HttpClient, Pace, RequestError, is_missing,
    listing::look_through,
    parse_currency,
    reading::{ListedItem, Made, Named, Reading, made},
    unordered,
};
use crate::domain::charge::{CHARGE_ID, InvoiceItem};

/// Creates an item, pending or on the draft it names.
pub(super) async fn create(client: &HttpClient, item: &InvoiceItem, key: &str) -> Result<Made, RequestError> {
    let mut request = CreateInvoiceItem::new()
        .customer(&item.customer)
        .amount(item.amount_minor)
        .currency(parse_currency(&item.currency)?)
        .description(&item.description)
        .metadata(unordered(&item.metadata));
    if let Some(subscription) = &item.subscription {
        request = request.subscription(subscription);
    }
    if let Some(invoice) = &item.invoice {
        request = request.invoice(invoice);
    }
    made(client, request, key).await
}

/// All of a customer's items of a charge; an error where the listing has no end within bounds.
pub(super) async fn find_all(
    client: &HttpClient,
    customer: &str,
    charge_id: &str,
    pace: &Pace,
) -> Result<Vec<FoundItem>, RequestError> {
    let list = ListInvoiceItem::new().customer(customer);
    let items = look_through(client, list, pace, |item| is_of(item, charge_id)).await?;
    let found = items.into_iter().map(|item| FoundItem {
        item_id: item.id,
        amount_minor: item.amount,
        is_invoiced: item.invoice.is_some(),
    });
    Ok(found.collect())
}

/// Ids of a customer's items, each with the invoice that it is on, likewise.
pub(super) async fn on_invoices(
    client: &HttpClient,
    customer: &str,
    pace: &Pace,
) -> Result<Vec<(String, Option<String>)>, RequestError> {
    let items = look_through(client, ListInvoiceItem::new().customer(customer), pace, |_| true).await?;
    Ok(items.into_iter().map(|item| (item.id, item.invoice)).collect())
}

fn is_of(item: &ListedItem, charge_id: &str) -> bool {
    item.metadata.as_ref().and_then(|m| m.get(CHARGE_ID)).is_some_and(|id| id == charge_id)
}

/// Whether an item is there.
pub(super) async fn is_there(client: &HttpClient, item_id: &str) -> Result<bool, RequestError> {
    match Reading::<_, Named>::of(RetrieveInvoiceItem::new(item_id)).customize().send(client).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes an item; one that is not there is deleted.
pub(super) async fn delete(client: &HttpClient, item_id: &str) -> Result<(), RequestError> {
    match DeleteInvoiceItem::new(item_id).send(client).await {
        Ok(_) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
