//! The port to Stripe's books: every invoice item and invoice, over all customers, page by page. It only reads.
//! [`super::stripe::Stripe`] reads them over HTTP; the tests have a second implementation, in memory; one contract
//! test holds the two together.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use super::Doubt;

/// Reads what Stripe holds.
///
/// All calls end; none tries again by itself.
pub trait Books: Send + Sync {
    /// A page of the invoice items, newest first.
    fn items<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookItem>, Doubt>>;

    /// A page of the invoices, newest first.
    fn invoices<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookInvoice>, Doubt>>;

    /// One invoice item; `None`: it is not there, or was deleted.
    fn item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<Option<BookItem>, Doubt>>;
}

/// Which part of the books is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Only of this customer.
    pub customer: Option<String>,
    /// Only what was made then or later, by Stripe's clock.
    pub created_from: Option<DateTime<Utc>>,
    /// Behind this place; `None`: from the newest on.
    pub after: Option<Place>,
}

/// A place in a listing: the last entry of the page before. An entry that was deleted meanwhile still says when
/// it was made; the page then begins with that second, so that entries may come twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Id of the entry.
    pub id: String,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next page begins; `None`: this is the last one.
    pub next: Option<Place>,
}

/// An invoice item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookItem {
    /// Id.
    pub item_id: String,
    /// Customer.
    pub customer: String,
    /// Subscription, if it is on one.
    pub subscription: Option<String>,
    /// Amount in minor units.
    pub amount_minor: i64,
    /// ISO 4217, in capitals.
    pub currency: String,
    /// Text on the invoice.
    pub description: String,
    /// What the item stands for, if it is ours.
    pub metadata: BTreeMap<String, String>,
    /// Invoice it is on; `None`: it waits for one.
    pub invoice_id: Option<String>,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// An invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookInvoice {
    /// Id.
    pub invoice_id: String,
    /// Whether it is final.
    pub status: InvoiceStatus,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// How far an invoice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvoiceStatus {
    /// Its items may still change.
    Draft,
    /// Final: to be paid, paid, or given up.
    Finalised,
    /// Final, and of no effect.
    Void,
}

impl InvoiceStatus {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Finalised => "finalised",
            Self::Void => "void",
        }
    }
}
