//! The port that sells subscriptions: customers, checkouts that lead to one, and changes of one. What is read of them is
//! [`super::subscriptions`]'s. [`super::stripe::Stripe`] does it over HTTP; the tests have a second implementation, in
//! memory; one contract test holds the two together.

use futures::future::BoxFuture;

use super::{Doubt, Outcome};
use crate::domain::{
    stripe_change::{NewCheckout, SubscriptionChange},
    stripe_customer::NewCustomer,
};

/// Sells subscriptions.
///
/// All calls end; none tries again by itself. With the same key, what is asked for must be the same, and never happens
/// twice.
pub trait Sales: Send + Sync {
    /// The price that is sold: the first of these names, ids or lookup keys, that is one which is active and in this
    /// currency (ISO 4217). `None`: none is.
    fn price<'a>(
        &'a self,
        names: &'a [String],
        currency: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Doubt>>;

    /// Makes a customer, which its metadata names the account of.
    fn create_customer<'a>(&'a self, customer: &'a NewCustomer, key: &'a str) -> BoxFuture<'a, Outcome>;

    /// Opens a checkout; its session is named.
    fn open_checkout<'a>(&'a self, checkout: &'a NewCheckout, key: &'a str) -> BoxFuture<'a, Outcome>;

    /// Ends an open checkout. One that is over is refused.
    fn end_checkout<'a>(&'a self, session_id: &'a str, key: &'a str) -> BoxFuture<'a, Outcome>;

    /// Changes a subscription. One that is over can only be ended, which it is.
    fn change_subscription<'a>(
        &'a self,
        id: &'a str,
        change: &'a SubscriptionChange,
        key: &'a str,
    ) -> BoxFuture<'a, Outcome>;
}
