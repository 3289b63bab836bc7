//! The port to whoever keeps the customers' subscriptions: how they stand right now.

use std::ops::Range;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use super::{
    Doubt,
    books::{Listing, Page},
    pace::Pace,
};
use crate::domain::stripe_objects::{CheckoutSession, Customer, Invoice, Subscription};

/// Customers, subscriptions, checkouts and invoices, read.
///
/// `None`: there is no such object. A doubt: it could not be read now.
pub trait Subscriptions: Send + Sync {
    /// A subscription, one that has ended too.
    fn subscription<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Subscription>, Doubt>>;

    /// A page of all subscriptions, newest first, those that have ended too. One that is in a state which is not known here is
    /// left out.
    fn subscriptions<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<Subscription>, Doubt>>;

    /// A page of the changes of subscriptions, newest first: the subscription of each. Those of a customer are not told apart.
    fn changes<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<String>, Doubt>>;

    /// A checkout.
    fn checkout_session<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<CheckoutSession>, Doubt>>;

    /// The checkouts that were opened in a span of time, by a customer that was there before, or by anybody; in whole seconds.
    fn checkout_sessions<'a>(
        &'a self,
        customer: Option<&'a str>,
        opened: Range<DateTime<Utc>>,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<CheckoutSession>, Doubt>>;

    /// An invoice.
    fn invoice<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Invoice>, Doubt>>;

    /// A customer; one that was deleted is none.
    fn customer<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Customer>, Doubt>>;
}
