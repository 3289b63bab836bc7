//! [`Subscriptions`] in memory: what a test says is how things stand, and what is sold changes that.

mod sales;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use futures::{FutureExt, future::BoxFuture};
use nexus_billing::{
    domain::stripe_objects::{CheckoutSession, Customer, Invoice, Subscription},
    payments::{Doubt, pace::Pace, subscriptions::Subscriptions},
};
use tokio::sync::watch;

pub(crate) use sales::MemoryPrice;

/// Objects by id.
#[derive(Debug, Default)]
pub(crate) struct MemorySubscriptions {
    state: Mutex<State>,
    unanswered: watch::Sender<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) subscriptions: HashMap<String, Subscription>,
    pub(crate) sessions: HashMap<String, CheckoutSession>,
    pub(crate) invoices: HashMap<String, Invoice>,
    pub(crate) customers: HashMap<String, Customer>,
    pub(crate) prices: Vec<MemoryPrice>,
    pub(crate) sold: sales::Sold,
}

impl MemorySubscriptions {
    /// How things stand, to look at and to change.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found<'a, T: Clone + Send + 'a>(
    objects: &HashMap<String, T>,
    id: &str,
) -> BoxFuture<'a, Result<Option<T>, Doubt>> {
    futures::future::ready(Ok(objects.get(id).cloned())).boxed()
}

impl Subscriptions for MemorySubscriptions {
    fn subscription<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Subscription>, Doubt>> {
        found(&self.state().subscriptions, id)
    }

    fn checkout_session<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<CheckoutSession>, Doubt>> {
        found(&self.state().sessions, id)
    }

    fn checkout_sessions<'a>(
        &'a self,
        customer: Option<&'a str>,
        opened: Range<DateTime<Utc>>,
        _pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<CheckoutSession>, Doubt>> {
        let state = self.state();
        let is_asked_for = |id: &String| {
            Self::opened(&state, id).is_some_and(|(at, by)| {
                opened.contains(&at) && customer.is_none_or(|customer| by.as_deref() == Some(customer))
            })
        };
        let found = state.sessions.iter().filter(|(id, _)| is_asked_for(id)).map(|(_, found)| found.clone());
        futures::future::ready(Ok(found.collect())).boxed()
    }

    fn invoice<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Invoice>, Doubt>> {
        found(&self.state().invoices, id)
    }

    fn customer<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Customer>, Doubt>> {
        found(&self.state().customers, id)
    }
}
