//! [`Books`] at Stripe.

use chrono::{DateTime, TimeZone, Utc};
use futures::future::BoxFuture;
use stripe_billing::{
    Invoice as StripeInvoice, InvoiceItem as StripeItem, InvoiceStatus as StripeStatus,
    invoice::{ListInvoice, RetrieveInvoice},
    invoice_item::{ListInvoiceItem, RetrieveInvoiceItem},
};
use stripe_core::customer::RetrieveCustomer;
use stripe_types::{RangeBoundsTs, RangeQueryTs};
use tracing::Instrument;

use super::{HttpClient, RequestError, Stripe, doubt, is_missing};
use crate::{
    domain::books::{BookInvoice, BookItem, InvoiceStatus},
    payments::{
        Doubt,
        books::{Books, Listing, Page, Place},
    },
};

/// Entries a page has at most.
const PAGE: i64 = 100;

impl Books for Stripe {
    fn items<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookItem>, Doubt>> {
        let span =
            tracing::info_span!("stripe.list_invoice_items", otel.kind = "client", server.address = "stripe");
        let call = async move { items(&self.client, listing).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn invoices<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookInvoice>, Doubt>> {
        let span =
            tracing::info_span!("stripe.list_invoices", otel.kind = "client", server.address = "stripe");
        let call = async move { invoices(&self.client, listing).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<Option<BookItem>, Doubt>> {
        let span = tracing::info_span!(
            "stripe.retrieve_invoice_item",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move {
            match RetrieveInvoiceItem::new(item_id).send(&self.client).await {
                Ok(item) => book_item(item).map(Some).map_err(|e| doubt(&e)),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(doubt(&error)),
            }
        };
        Box::pin(call.instrument(span))
    }

    fn invoice<'a>(&'a self, invoice_id: &'a str) -> BoxFuture<'a, Result<Option<BookInvoice>, Doubt>> {
        let span =
            tracing::info_span!("stripe.retrieve_invoice", otel.kind = "client", server.address = "stripe");
        let call = async move {
            match RetrieveInvoice::new(invoice_id).send(&self.client).await {
                Ok(invoice) => book_invoice(invoice).map(Some).map_err(|e| doubt(&e)),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(doubt(&error)),
            }
        };
        Box::pin(call.instrument(span))
    }

    fn has_had_customer<'a>(&'a self, customer: &'a str) -> BoxFuture<'a, Result<bool, Doubt>> {
        let span =
            tracing::info_span!("stripe.retrieve_customer", otel.kind = "client", server.address = "stripe");
        let call = async move {
            match RetrieveCustomer::new(customer).send(&self.client).await {
                Ok(_) => Ok(true),
                Err(error) if is_missing(&error) => Ok(false),
                Err(error) => Err(doubt(&error)),
            }
        };
        Box::pin(call.instrument(span))
    }
}

async fn items(client: &HttpClient, listing: &Listing) -> Result<Page<BookItem>, RequestError> {
    let request = |after: Option<&str>, until: Option<DateTime<Utc>>| {
        let mut request = ListInvoiceItem::new().limit(PAGE);
        if let Some(customer) = &listing.customer {
            request = request.customer(customer);
        }
        if let Some(created) = range(listing.created_from, until) {
            request = request.created(created);
        }
        if let Some(after) = after {
            request = request.starting_after(after);
        }
        request
    };
    let page = match &listing.after {
        None => request(None, None).send(client).await?,
        Some(place) => match request(Some(&place.id), None).send(client).await {
            Err(error) if is_missing(&error) => request(None, Some(place.created)).send(client).await?,
            answer => answer?,
        },
    };
    let entries = page.data.into_iter().map(book_item).collect::<Result<Vec<_>, _>>()?;
    let place = |item: &BookItem| Place { id: item.item_id.clone(), created: item.created };
    Ok(Page { next: next(page.has_more, entries.last().map(place))?, entries })
}

async fn invoices(client: &HttpClient, listing: &Listing) -> Result<Page<BookInvoice>, RequestError> {
    let request = |after: Option<&str>, until: Option<DateTime<Utc>>| {
        let mut request = ListInvoice::new().limit(PAGE);
        if let Some(customer) = &listing.customer {
            request = request.customer(customer);
        }
        if let Some(created) = range(listing.created_from, until) {
            request = request.created(created);
        }
        if let Some(after) = after {
            request = request.starting_after(after);
        }
        request
    };
    let page = match &listing.after {
        None => request(None, None).send(client).await?,
        Some(place) => match request(Some(&place.id), None).send(client).await {
            Err(error) if is_missing(&error) => request(None, Some(place.created)).send(client).await?,
            answer => answer?,
        },
    };
    let entries = page.data.into_iter().map(book_invoice).collect::<Result<Vec<_>, _>>()?;
    let place = |invoice: &BookInvoice| Place { id: invoice.invoice_id.clone(), created: invoice.created };
    Ok(Page { next: next(page.has_more, entries.last().map(place))?, entries })
}

fn range(from: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>) -> Option<RangeQueryTs> {
    let bounds = RangeBoundsTs {
        gte: from.map(|at| at.timestamp()),
        lte: until.map(|at| at.timestamp()),
        ..RangeBoundsTs::default()
    };
    (from.is_some() || until.is_some()).then_some(RangeQueryTs::Bounds(bounds))
}

pub(super) fn next(has_more: bool, last: Option<Place>) -> Result<Option<Place>, RequestError> {
    if has_more && last.is_none() {
        return Err(RequestError::Unreadable("an empty page with more to come".to_owned()));
    }
    Ok(last.filter(|_| has_more))
}

fn book_item(item: StripeItem) -> Result<BookItem, RequestError> {
    let subscription = item.parent.and_then(|parent| parent.subscription_details);
    Ok(BookItem {
        created: time(item.date)?,
        item_id: item.id.to_string(),
        customer: item.customer.id().to_string(),
        subscription: subscription.map(|details| details.subscription),
        amount_minor: item.amount,
        currency: item.currency.to_string().to_uppercase(),
        description: item.description.unwrap_or_default(),
        metadata: item.metadata.unwrap_or_default().into_iter().collect(),
        invoice_id: item.invoice.and_then(|invoice| invoice.into_id()).map(|id| id.to_string()),
    })
}

fn book_invoice(invoice: StripeInvoice) -> Result<BookInvoice, RequestError> {
    let id = invoice.id.ok_or_else(|| RequestError::Unreadable("an invoice without an id".to_owned()))?;
    let status = match invoice.status {
        Some(StripeStatus::Open | StripeStatus::Paid | StripeStatus::Uncollectible) => {
            InvoiceStatus::Finalised
        }
        Some(StripeStatus::Void) => InvoiceStatus::Void,
        Some(StripeStatus::Draft) => InvoiceStatus::Draft,
        other => return Err(RequestError::Unreadable(format!("an invoice with the status {other:?}"))),
    };
    Ok(BookInvoice { invoice_id: id.to_string(), status, created: time(invoice.created)? })
}

pub(super) fn time(seconds: i64) -> Result<DateTime<Utc>, RequestError> {
    let unreadable = || RequestError::Unreadable(format!("{seconds} is no time"));
    Utc.timestamp_opt(seconds, 0).single().ok_or_else(unreadable)
}
