//! Items that are at Stripe already: all of a charge, and deleting one.

use std::time::Duration;

use stripe_billing::{
    InvoiceItem as StripeItem,
    invoice_item::{DeleteInvoiceItem, ListInvoiceItem},
};

use super::{FoundItem, HttpClient, Pace, RequestError};
use crate::domain::charge::CHARGE_ID;

/// Items a page of a listing has at most.
const PAGE: i64 = 100;
/// Pages that are looked through at most: a customer gets some 30 items a month.
const MAX_PAGES: usize = 100;
/// Longest time a search may take.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(120);

/// All of a customer's items of a charge; an error where the listing has no end within bounds.
pub(super) async fn find_all(
    client: &HttpClient,
    customer: &str,
    charge_id: &str,
    pace: &Pace,
) -> Result<Vec<FoundItem>, RequestError> {
    let search = look_through(client, customer, charge_id, pace);
    tokio::time::timeout(SEARCH_TIMEOUT, search).await.unwrap_or(Err(RequestError::TooLong))
}

async fn look_through(
    client: &HttpClient,
    customer: &str,
    charge_id: &str,
    pace: &Pace,
) -> Result<Vec<FoundItem>, RequestError> {
    let mut found = Vec::new();
    let mut list = ListInvoiceItem::new().customer(customer).limit(PAGE);
    for turn in 0..MAX_PAGES {
        if turn > 0 {
            pace.wait().await;
        }
        let page = list.send(client).await?;
        let last = page.data.last().map(|item| item.id.to_string());
        found.extend(page.data.into_iter().filter(|item| is_of(item, charge_id)).map(|item| FoundItem {
            item_id: item.id.to_string(),
            amount_minor: item.amount,
            is_invoiced: item.invoice.is_some(),
        }));
        if !page.has_more {
            return Ok(found);
        }
        let last =
            last.ok_or_else(|| RequestError::Unreadable("an empty page with more to come".to_owned()))?;
        list = list.starting_after(last);
    }
    Err(RequestError::TooLong)
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
