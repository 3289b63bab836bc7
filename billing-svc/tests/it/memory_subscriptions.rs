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
    payments::{
        Advice, Doubt,
        books::{Listing, Page, Place},
        pace::Pace,
        subscriptions::Subscriptions,
    },
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
    /// Changes of subscriptions, oldest first.
    pub(crate) changes: Vec<(DateTime<Utc>, String)>,
    /// A subscription that is only listed.
    pub(crate) unreadable: Option<String>,
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

/// Entries a page of a listing has at most.
const PAGE: usize = 100;

/// A page of what is listed newest first.
fn page<'a, T: Send + 'a>(
    mut entries: Vec<(Place, T)>,
    listing: &Listing,
) -> BoxFuture<'a, Result<Page<T>, Doubt>> {
    entries.retain(|(place, _)| listing.created_from.is_none_or(|from| place.created >= from));
    if let Some(after) = &listing.after {
        let behind = entries.iter().position(|(place, _)| place.id == after.id).map_or(0, |at| at + 1);
        entries.drain(..behind);
    }
    let more = entries.len() > PAGE;
    entries.truncate(PAGE);
    let next = entries.last().map(|(place, _)| place.clone()).filter(|_| more);
    futures::future::ready(Ok(Page { entries: entries.into_iter().map(|(_, entry)| entry).collect(), next }))
        .boxed()
}

impl Subscriptions for MemorySubscriptions {
    fn subscription<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Subscription>, Doubt>> {
        let state = self.state();
        if state.unreadable.as_deref() == Some(id) {
            let message = "its state is not known".to_owned();
            let doubt = Doubt { advice: Advice::Later, retry_after: None, message };
            return futures::future::ready(Err(doubt)).boxed();
        }
        found(&state.subscriptions, id)
    }

    fn subscriptions<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<Subscription>, Doubt>> {
        let state = self.state();
        let wanted = state
            .subscriptions
            .values()
            .filter(|s| listing.customer.as_ref().is_none_or(|c| s.customer == *c));
        let mut entries: Vec<_> =
            wanted.map(|s| (Place { id: s.id.clone(), created: s.created }, s.clone())).collect();
        entries.sort_by(|(a, _), (b, _)| (b.created, &b.id).cmp(&(a.created, &a.id)));
        page(entries, listing)
    }

    fn changes<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<String>, Doubt>> {
        let state = self.state();
        let changes = state.changes.iter().enumerate().rev();
        let place = |number: usize, created| Place { id: format!("evt_{number}"), created };
        page(changes.map(|(number, (at, id))| (place(number, *at), id.clone())).collect(), listing)
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
