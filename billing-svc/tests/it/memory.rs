//! [`Payments`] in memory, for tests of the engine: keys, items and refusals behave as at Stripe, and what
//! goes wrong can be said beforehand.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, future::BoxFuture};
use nexus_billing::{
    domain::{
        books::{BookInvoice, BookItem, InvoiceStatus},
        charge::{CHARGE_ID, InvoiceItem},
    },
    payments::{
        Advice, Doubt, FoundItem, Outcome, Payments, Refusal,
        books::{Books, Listing, Page, Place},
        pace::Pace,
    },
};
use tokio::sync::watch;
use uuid::Uuid;

/// What goes wrong with a call that creates an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request is lost on its way.
    Lost,
    /// The item is made, the answer is lost.
    AnswerLost,
    /// The item is made, an answer never comes.
    NoAnswer,
    /// An error of the other side's own, kept for the key; the item is not made.
    StoredError,
    /// The same, but the item is made.
    StoredErrorAfterEffect,
}

/// Items by customer.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    unanswered: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    customers: HashSet<String>,
    items: Vec<(String, InvoiceItem)>,
    made: usize,
    invoiced: HashSet<String>,
    answers: HashMap<String, (InvoiceItem, Outcome)>,
    faults: VecDeque<Fault>,
}

impl Memory {
    /// No customers yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a customer.
    pub(crate) fn add_customer(&self, customer: &str) {
        self.state().customers.insert(customer.to_owned());
    }

    /// Lets the next call that creates an item go wrong.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// All items, with their ids.
    pub(crate) fn items(&self) -> Vec<(String, InvoiceItem)> {
        self.state().items.clone()
    }

    /// Puts all items of a customer on a finalised invoice.
    pub(crate) fn invoice(&self, customer: &str) {
        let mut state = self.state();
        let State { items, invoiced, .. } = &mut *state;
        invoiced.extend(items.iter().filter(|(_, item)| item.customer == customer).map(|(id, _)| id.clone()));
    }

    /// Calls that never got an answer so far.
    pub(crate) fn unanswered(&self) -> usize {
        *self.unanswered.borrow()
    }

    /// Waits until there are that many.
    pub(crate) async fn until_unanswered(&self, at_least: usize) {
        // The sender lives in `self`, so waiting ends only when there are enough.
        if self.unanswered.subscribe().wait_for(|n| *n >= at_least).await.is_err() {
            futures::future::pending().await
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn create(&mut self, item: &InvoiceItem, key: &str, fault: Option<Fault>) -> Outcome {
        if let Some((sent, answer)) = self.answers.get(key) {
            return match answer {
                _ if sent != item => unknown(Advice::Look, "the key was used with other parameters"),
                Outcome::Unknown(doubt) => Outcome::Unknown(Doubt { advice: Advice::Look, ..doubt.clone() }),
                answer => answer.clone(),
            };
        }
        if !self.customers.contains(&item.customer) {
            return Outcome::FailedForGood(Refusal {
                reason: "RESOURCE_MISSING".to_owned(),
                message: format!("no such customer: {}", item.customer),
            });
        }
        self.made += 1;
        let item_id = format!("ii_{}", self.made);
        if fault != Some(Fault::StoredError) {
            self.items.push((item_id.clone(), item.clone()));
        }
        let answer = match fault {
            Some(Fault::StoredError | Fault::StoredErrorAfterEffect) => {
                unknown(Advice::Again, "an error of the other side's own")
            }
            _ => Outcome::Succeeded { item_id },
        };
        self.answers.insert(key.to_owned(), (item.clone(), answer.clone()));
        answer
    }
}

impl Payments for Memory {
    fn create_invoice_item<'a>(&'a self, item: &'a InvoiceItem, key: &'a str) -> BoxFuture<'a, Outcome> {
        let call = async move {
            let fault = self.state().faults.pop_front();
            if fault == Some(Fault::Lost) {
                return unknown(Advice::Again, "the request was lost");
            }
            let answer = self.state().create(item, key, fault);
            match fault {
                Some(Fault::AnswerLost) => unknown(Advice::Again, "the answer was lost"),
                Some(Fault::NoAnswer) => {
                    self.unanswered.send_modify(|n| *n += 1);
                    futures::future::pending().await
                }
                _ => answer,
            }
        };
        call.boxed()
    }

    fn find_items<'a>(
        &'a self,
        customer: &'a str,
        charge_id: Uuid,
        _: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<FoundItem>, Doubt>> {
        let wanted = charge_id.to_string();
        let state = self.state();
        let found = state
            .items
            .iter()
            .filter(|(_, item)| item.customer == customer && item.metadata.get(CHARGE_ID) == Some(&wanted))
            .map(|(item_id, item)| FoundItem {
                item_id: item_id.clone(),
                amount_minor: item.amount_minor,
                is_invoiced: state.invoiced.contains(item_id),
            })
            .collect();
        futures::future::ready(Ok(found)).boxed()
    }

    fn delete_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<(), Doubt>> {
        let mut state = self.state();
        let deleted = if state.invoiced.contains(item_id) {
            Err(Doubt {
                advice: Advice::Later,
                retry_after: None,
                message: "the item is on a finalised invoice".to_owned(),
            })
        } else {
            state.items.retain(|(id, _)| id != item_id);
            Ok(())
        };
        futures::future::ready(deleted).boxed()
    }
}

fn unknown(advice: Advice, message: &str) -> Outcome {
    Outcome::Unknown(Doubt { advice, retry_after: None, message: message.to_owned() })
}

/// Entries a page of a listing has at most.
const PAGE: usize = 100;

impl State {
    fn book_item(&self, item_id: &str, item: &InvoiceItem) -> BookItem {
        BookItem {
            item_id: item_id.to_owned(),
            customer: item.customer.clone(),
            subscription: item.subscription.clone(),
            amount_minor: item.amount_minor,
            currency: item.currency.clone(),
            description: item.description.clone(),
            metadata: item.metadata.clone(),
            invoice_id: self.invoiced.contains(item_id).then(|| format!("in_{}", item.customer)),
            created: made_at(item_id),
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
            .filter(|(_, item)| listing.customer.as_ref().is_none_or(|c| item.customer == *c))
            .map(|(id, item)| (Place { id: id.clone(), created: made_at(id) }, state.book_item(id, item)))
            .collect();
        futures::future::ready(Ok(page(entries, listing, |place, after| place.created < after.created)))
            .boxed()
    }

    fn invoices<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<BookInvoice>, Doubt>> {
        let state = self.state();
        let mut customers: Vec<&str> = state
            .items
            .iter()
            .filter(|(id, _)| state.invoiced.contains(id))
            .map(|(_, item)| item.customer.as_str())
            .filter(|customer| listing.customer.as_ref().is_none_or(|c| c == customer))
            .collect();
        customers.sort_unstable();
        customers.dedup();
        let created = DateTime::UNIX_EPOCH;
        let entries = customers
            .into_iter()
            .map(|customer| {
                let invoice_id = format!("in_{customer}");
                let invoice =
                    BookInvoice { invoice_id: invoice_id.clone(), status: InvoiceStatus::Finalised, created };
                (Place { id: invoice_id, created }, invoice)
            })
            .collect();
        futures::future::ready(Ok(page(entries, listing, |place, after| place.id > after.id))).boxed()
    }

    fn item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<Option<BookItem>, Doubt>> {
        let state = self.state();
        let found = state.items.iter().find(|(id, _)| id == item_id);
        let found = found.map(|(id, item)| state.book_item(id, item));
        futures::future::ready(Ok(found)).boxed()
    }
}
