//! Items that are at Stripe already: all of a charge, and deleting one.

use stripe_billing::{
    InvoiceItem as StripeItem,
    invoice_item::{DeleteInvoiceItem, ListInvoiceItem},
};

use super::{FoundItem, HttpClient, PAGE, RequestError};
use crate::domain::charge::CHARGE_ID;

/// All of a customer's items of a charge.
pub(super) async fn find_all(
    client: &HttpClient,
    customer: &str,
    charge_id: &str,
) -> Result<Vec<FoundItem>, RequestError> {
    let mut found = Vec::new();
    let mut list = ListInvoiceItem::new().customer(customer).limit(PAGE);
    loop {
        let page = list.send(client).await?;
        let last = page.data.last().map(|item| item.id.to_string());
        found.extend(page.data.into_iter().filter(|item| is_of(item, charge_id)).map(|item| FoundItem {
            item_id: item.id.to_string(),
            amount_minor: item.amount,
            is_invoiced: item.invoice.is_some(),
        }));
        match last.filter(|_| page.has_more) {
            Some(last) => list = list.starting_after(last),
            None => return Ok(found),
        }
    }
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
