//! Invoice items: making one, all of a charge, those that are pending, and deleting one.

use std::{collections::HashSet, time::Duration};

use stripe_billing::{
    InvoiceItem as StripeItem,
    invoice_item::{CreateInvoiceItem, DeleteInvoiceItem, ListInvoiceItem},
};
use stripe_client_core::StripeRequest;

use super::{FoundItem, HttpClient, Pace, RequestError, once, parse_currency, unordered};
use crate::domain::charge::{CHARGE_ID, InvoiceItem};

/// Items a page of a listing has at most.
pub(super) const PAGE: i64 = 100;
/// Pages that are looked through at most: a customer gets some 30 items a month.
pub(super) const MAX_PAGES: usize = 100;
/// Longest time a search may take.
pub(super) const SEARCH_TIMEOUT: Duration = Duration::from_secs(120);

/// Creates an item, pending or on the draft it names; returns its id.
pub(super) async fn create(
    client: &HttpClient,
    item: &InvoiceItem,
    key: &str,
) -> Result<String, RequestError> {
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
    let created = request.customize().request_strategy(once(key)?).send(client).await?;
    Ok(created.id.to_string())
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
        item_id: item.id.to_string(),
        amount_minor: item.amount,
        is_invoiced: item.invoice.is_some(),
    });
    Ok(found.collect())
}

/// Ids of a customer's items that are on no invoice, likewise.
pub(super) async fn pending(
    client: &HttpClient,
    customer: &str,
    pace: &Pace,
) -> Result<HashSet<String>, RequestError> {
    let list = ListInvoiceItem::new().customer(customer).pending(true);
    let items = look_through(client, list, pace, |item| item.invoice.is_none()).await?;
    Ok(items.into_iter().map(|item| item.id.to_string()).collect())
}

async fn look_through(
    client: &HttpClient,
    list: ListInvoiceItem,
    pace: &Pace,
    wanted: impl Fn(&StripeItem) -> bool,
) -> Result<Vec<StripeItem>, RequestError> {
    let search = async {
        let mut found = Vec::new();
        let mut list = list.limit(PAGE);
        for turn in 0..MAX_PAGES {
            if turn > 0 {
                pace.wait().await;
            }
            let page = list.send(client).await?;
            let last = page.data.last().map(|item| item.id.to_string());
            found.extend(page.data.into_iter().filter(&wanted));
            if !page.has_more {
                return Ok(found);
            }
            list = list.starting_after(last.ok_or_else(empty_page)?);
        }
        Err(RequestError::TooLong)
    };
    tokio::time::timeout(SEARCH_TIMEOUT, search).await.unwrap_or(Err(RequestError::TooLong))
}

/// A listing that does not go on, and says that there is more.
pub(super) fn empty_page() -> RequestError {
    RequestError::Unreadable("an empty page with more to come".to_owned())
}

fn is_of(item: &StripeItem, charge_id: &str) -> bool {
    item.metadata.as_ref().and_then(|m| m.get(CHARGE_ID)).is_some_and(|id| id == charge_id)
}

/// Deletes an item; one that is not there is deleted.
pub(super) async fn delete(client: &HttpClient, item_id: &str) -> Result<(), RequestError> {
    match DeleteInvoiceItem::new(item_id).send(client).await {
        Ok(_) => Ok(()),
        Err(RequestError::Answer(answer))
            if answer.status == 404 && answer.error.code.as_deref() == Some("resource_missing") =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
