//! Its books.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, future::BoxFuture};
use nexus_billing::{
    domain::books::{BookInvoice, BookItem, InvoiceStatus},
    payments::{
        Doubt, Place as ItemPlace,
        books::{Books, Listing, Page, Place},
    },
};

use super::{Item, Memory};

/// Entries a page of a listing has at most.
const PAGE: usize = 100;

impl From<&Item> for BookItem {
    fn from(Item { id, item, invoice }: &Item) -> Self {
        Self {
            item_id: id.clone(),
            customer: item.customer.clone(),
            subscription: item.subscription.clone(),
            amount_minor: item.amount_minor,
            currency: item.currency.clone(),
            description: item.description.clone(),
            metadata: item.metadata.clone(),
            invoice_id: invoice.clone(),
            created: made_at(id),
        }
    }
}

/// The first item is made in the first second.
fn made_at(item_id: &str) -> DateTime<Utc> {
    let number = item_id.trim_start_matches("ii_").parse().unwrap_or_default();
    DateTime::UNIX_EPOCH + TimeDelta::seconds(number)
}

fn page<T>(
    mut entries: Vec<(Place, T)>,
    listing: &Listing,
    is_behind: impl Fn(&Place, &Place) -> bool,
) -> Page<T> {
    entries.retain(|(place, _)| {
        listing.created_from.is_none_or(|from| place.created >= from)
            && listing.after.as_ref().is_none_or(|after| is_behind(place, after))
    });
    let more = entries.len() > PAGE;
    entries.truncate(PAGE);
    let next = entries.last().map(|(place, _)| place.clone()).filter(|_| more);
    Page { entries: entries.into_iter().map(|(_, entry)| entry).collect(), next }
}

impl Books for Memory {
    fn items<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookItem>, Doubt>> {
        let state = self.state();
        let entries = state
            .items
            .iter()
            .rev()
            .filter(|item| listing.customer.as_ref().is_none_or(|c| item.item.customer == *c))
            .map(|item| (Place { id: item.id.clone(), created: made_at(&item.id) }, item.into()))
            .collect();
        futures::future::ready(Ok(page(entries, listing, |place, after| place.created < after.created)))
            .boxed()
    }

    fn invoices<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookInvoice>, Doubt>> {
        let state = self.state();
        let of_items =
            state.items.iter().filter_map(|item| Some((item.invoice.as_ref()?, &item.item.customer)));
        let made = state.invoices.iter().map(|invoice| (&invoice.id, &invoice.invoice.customer));
        let wanted = of_items
            .chain(made)
            .filter(|(_, customer)| listing.customer.as_ref().is_none_or(|c| c == *customer));
        let ids: BTreeSet<&String> = wanted.map(|(id, _)| id).collect();
        let created = DateTime::UNIX_EPOCH;
        let entries = ids
            .into_iter()
            .map(|id| {
                let is_draft = state.invoices.iter().any(|invoice| invoice.id == *id && invoice.is_draft);
                let status = if is_draft { InvoiceStatus::Draft } else { InvoiceStatus::Finalised };
                (Place { id: id.clone(), created }, BookInvoice { invoice_id: id.clone(), status, created })
            })
            .collect();
        futures::future::ready(Ok(page(entries, listing, |place, after| place.id > after.id))).boxed()
    }

    fn invoice<'a>(&'a self, invoice_id: &'a str) -> BoxFuture<'a, Result<Option<BookInvoice>, Doubt>> {
        let state = self.state();
        let is_there = state.invoices.iter().any(|invoice| invoice.id == invoice_id)
            || state.items.iter().any(|item| item.invoice.as_deref() == Some(invoice_id));
        let found = is_there.then(|| {
            let is_draft = matches!(state.place(Some(invoice_id)), ItemPlace::Draft { .. });
            let status = if is_draft { InvoiceStatus::Draft } else { InvoiceStatus::Finalised };
            BookInvoice { invoice_id: invoice_id.to_owned(), status, created: DateTime::UNIX_EPOCH }
        });
        futures::future::ready(Ok(found)).boxed()
    }

    fn item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<Option<BookItem>, Doubt>> {
        let found = self.state().items.iter().find(|item| item.id == item_id).map(BookItem::from);
        futures::future::ready(Ok(found)).boxed()
    }

    fn has_had_customer<'a>(&'a self, customer: &'a str) -> BoxFuture<'a, Result<bool, Doubt>> {
        futures::future::ready(Ok(self.state().customers.contains(customer))).boxed()
    }
}
