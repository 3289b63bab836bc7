//! Listings that are looked through to their end, page by page, within bounds.

use std::{future::Future, time::Duration};

use stripe_billing::{Invoice, invoice::ListInvoice, invoice_item::ListInvoiceItem};
use stripe_checkout::checkout_session::ListCheckoutSession;
use stripe_client_core::StripeRequest;
use stripe_shared::CheckoutSession;
use stripe_types::List;

use super::{
    HttpClient, Pace, RequestError, invoices, is_missing,
    reading::{ListedItem, Reading},
};

/// Entries a page has at most.
const PAGE: i64 = 100;
/// Pages that are looked through at most: a customer gets some 30 items a month.
const MAX_PAGES: usize = 100;
/// Longest time a search may take.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(120);

/// A request for a page of a listing.
pub(super) trait Listing: Sized + Send {
    /// What is listed.
    type Entry: Send;

    /// Asks for the page.
    fn page(
        &self,
        client: &HttpClient,
    ) -> impl Future<Output = Result<List<Self::Entry>, RequestError>> + Send;

    /// With pages as large as they may be.
    fn in_large_pages(self) -> Self;

    /// The page behind an entry.
    fn behind(self, id: &str) -> Self;

    /// Id of an entry.
    fn id(entry: &Self::Entry) -> Result<String, RequestError>;
}

impl Listing for ListInvoiceItem {
    type Entry = ListedItem;

    async fn page(&self, client: &HttpClient) -> Result<List<ListedItem>, RequestError> {
        Reading::<_, List<ListedItem>>::of(self.clone()).customize().send(client).await
    }

    fn in_large_pages(self) -> Self {
        self.limit(PAGE)
    }

    fn behind(self, id: &str) -> Self {
        self.starting_after(id)
    }

    fn id(item: &ListedItem) -> Result<String, RequestError> {
        Ok(item.id.clone())
    }
}

impl Listing for ListInvoice {
    type Entry = Invoice;

    async fn page(&self, client: &HttpClient) -> Result<List<Invoice>, RequestError> {
        self.send(client).await
    }

    fn in_large_pages(self) -> Self {
        self.limit(PAGE)
    }

    fn behind(self, id: &str) -> Self {
        self.starting_after(id)
    }

    fn id(invoice: &Invoice) -> Result<String, RequestError> {
        invoices::id(invoice)
    }
}

impl Listing for ListCheckoutSession {
    type Entry = CheckoutSession;

    async fn page(&self, client: &HttpClient) -> Result<List<CheckoutSession>, RequestError> {
        self.send(client).await
    }

    fn in_large_pages(self) -> Self {
        self.limit(PAGE)
    }

    fn behind(self, id: &str) -> Self {
        self.starting_after(id)
    }

    fn id(session: &CheckoutSession) -> Result<String, RequestError> {
        Ok(session.id.to_string())
    }
}

/// The entries of a listing that are wanted; each page after the first waits for its turn. An error where the listing has
/// no end within bounds.
pub(super) async fn look_through<L: Listing>(
    client: &HttpClient,
    list: L,
    pace: &Pace,
    wanted: impl Fn(&L::Entry) -> bool + Send,
) -> Result<Vec<L::Entry>, RequestError> {
    let search = async {
        let mut found = Vec::new();
        let mut list = list.in_large_pages();
        for turn in 0..MAX_PAGES {
            if turn > 0 {
                pace.wait().await;
            }
            let page = match list.page(client).await {
                Ok(page) => page,
                // Whoever is not there has nothing.
                Err(error) if turn == 0 && is_missing(&error) => return Ok(found),
                Err(error) => return Err(error),
            };
            let last = page.data.last().map(L::id).transpose()?;
            found.extend(page.data.into_iter().filter(&wanted));
            if !page.has_more {
                return Ok(found);
            }
            list = list.behind(&last.ok_or_else(empty_page)?);
        }
        Err(RequestError::TooLong)
    };
    tokio::time::timeout(SEARCH_TIMEOUT, search).await.unwrap_or(Err(RequestError::TooLong))
}

/// A listing that does not go on, and says that there is more.
fn empty_page() -> RequestError {
    RequestError::Unreadable("an empty page with more to come".to_owned())
}
