//! The port to Stripe's books: every invoice item and invoice, over all customers, page by page. It only reads.
//! [`super::stripe::Stripe`] reads them over HTTP; the tests have a second implementation, in memory; one contract
//! test holds the two together.

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use super::Doubt;
use crate::domain::books::{BookInvoice, BookItem};

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

    /// One invoice; `None`: it is not there, or was deleted.
    fn invoice<'a>(&'a self, invoice_id: &'a str) -> BoxFuture<'a, Result<Option<BookInvoice>, Doubt>>;

    /// Whether these are the books that the customer is or was in: one that was deleted is told from one of another's.
    fn has_had_customer<'a>(&'a self, customer: &'a str) -> BoxFuture<'a, Result<bool, Doubt>>;
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
