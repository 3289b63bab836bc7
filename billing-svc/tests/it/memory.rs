//! [`Payments`] in memory, for tests of the engine: keys, items and refusals behave as at Stripe, and what
//! goes wrong can be said beforehand.

mod books;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, future::BoxFuture};
use nexus_billing::{
    domain::{
        charge::{CHARGE_ID, InvoiceItem},
        invoice::{NewInvoice, SETTLEMENT_ID},
    },
    payments::{Advice, Doubt, FoundInvoice, FoundItem, Outcome, Payments, Place, Refusal, pace::Pace},
};
use tokio::sync::watch;
use uuid::Uuid;

/// What goes wrong with a call that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The request is lost on its way.
    Lost,
    /// It is done, the answer is lost.
    AnswerLost,
    /// It is done, an answer never comes.
    NoAnswer,
    /// It is done, the answer comes once [`Memory::release`] lets it.
    LateAnswer,
    /// An error of the other side's own, kept for the key; it is not done.
    StoredError,
    /// The same, but it is done.
    StoredErrorAfterEffect,
}

/// Items by customer.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    unanswered: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    customers: HashSet<String>,
    ended_subscriptions: HashSet<String>,
    items: Vec<Item>,
    invoices: Vec<Invoice>,
    made: usize,
    answers: HashMap<String, (Change, Outcome)>,
    faults: VecDeque<Fault>,
}

#[derive(Debug, Clone)]
struct Item {
    id: String,
    item: InvoiceItem,
    /// Invoice it is on.
    invoice: Option<String>,
}

#[derive(Debug, Clone)]
struct Invoice {
    id: String,
    invoice: NewInvoice,
    is_draft: bool,
    /// Whether it is finalised by itself.
    goes_on: bool,
    created: DateTime<Utc>,
}

/// What is asked for, to be compared with what a key was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Item(InvoiceItem),
    Invoice(NewInvoice),
    Add { invoice_id: String, item_ids: Vec<String> },
    Finalize { invoice_id: String },
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

    /// Nothing is taken on a subscription any more.
    pub(crate) fn end_subscription(&self, subscription: &str) {
        self.state().ended_subscriptions.insert(subscription.to_owned());
    }

    /// Makes a draft of a subscription that is not finalised by itself, with all pending items of its customer.
    pub(crate) fn draft(&self, customer: &str, subscription: &str) -> String {
        self.draft_that(customer, subscription, false)
    }

    /// The same; `goes_on`: whether it is finalised by itself, by [`Payments::finalize_invoice`].
    pub(crate) fn draft_that(&self, customer: &str, subscription: &str, goes_on: bool) -> String {
        let mut state = self.state();
        let id = state.next_id("in");
        let invoice = NewInvoice {
            customer: customer.to_owned(),
            subscription: Some(subscription.to_owned()),
            currency: "USD".to_owned(),
            description: String::new(),
            metadata: BTreeMap::new(),
        };
        state.invoices.push(Invoice {
            id: id.clone(),
            invoice,
            is_draft: true,
            goes_on,
            created: Utc::now(),
        });
        for item in &mut state.items {
            if item.item.customer == customer && item.invoice.is_none() {
                item.invoice = Some(id.clone());
            }
        }
        id
    }

    /// Makes all invoices so much older.
    pub(crate) fn age_invoices(&self, by: TimeDelta) {
        for invoice in &mut self.state().invoices {
            invoice.created -= by;
        }
    }

    /// Lets the next call that changes something go wrong.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// All items, with their ids.
    pub(crate) fn items(&self) -> Vec<(String, InvoiceItem)> {
        self.state().items.iter().map(|item| (item.id.clone(), item.item.clone())).collect()
    }

    /// Items of every invoice that was made and finalised.
    pub(crate) fn finalised(&self) -> Vec<Vec<String>> {
        let state = self.state();
        let finalised = state.invoices.iter().filter(|invoice| !invoice.is_draft);
        let items = finalised.map(|invoice| {
            let own = state.items.iter().filter(|item| item.invoice.as_ref() == Some(&invoice.id));
            own.map(|item| item.id.clone()).collect()
        });
        items.collect()
    }

    /// Puts all pending items of a customer on a finalised invoice.
    pub(crate) fn invoice(&self, customer: &str) {
        let mut state = self.state();
        let id = state.next_id("in");
        for item in &mut state.items {
            if item.item.customer == customer && item.invoice.is_none() {
                item.invoice = Some(id.clone());
            }
        }
    }

    /// Calls that never got an answer so far.
    pub(crate) fn unanswered(&self) -> usize {
        *self.unanswered.borrow()
    }

    /// Lets late answers come.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
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
    fn next_id(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}_{}", self.made)
    }

    fn answer(&mut self, change: Change, key: &str, fault: Option<Fault>) -> Outcome {
        if let Some((sent, answer)) = self.answers.get(key) {
            return match answer {
                _ if *sent != change => unknown(Advice::Look, "the key was used with other parameters"),
                Outcome::Unknown(doubt) => Outcome::Unknown(Doubt { advice: Advice::Look, ..doubt.clone() }),
                Outcome::Succeeded { id, .. } => Outcome::Succeeded { id: id.clone(), replayed: true },
                answer => answer.clone(),
            };
        }
        // What is refused is not kept for the key.
        if let Err(refusal) = self.check(&change) {
            return Outcome::FailedForGood(refusal);
        }
        let answer = match fault {
            Some(Fault::StoredError) => unknown(Advice::Again, "an error of the other side's own"),
            Some(Fault::StoredErrorAfterEffect) => {
                self.apply(&change);
                unknown(Advice::Again, "an error of the other side's own")
            }
            _ => Outcome::Succeeded { id: self.apply(&change), replayed: false },
        };
        self.answers.insert(key.to_owned(), (change, answer.clone()));
        answer
    }

    fn check(&self, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::Item(item) => {
                self.check_customer(&item.customer)?;
                if let Some(ended) =
                    item.subscription.as_ref().filter(|id| self.ended_subscriptions.contains(*id))
                {
                    return Err(refusal("INVALID_REQUEST_ERROR", format!("{ended} has ended")));
                }
                item.invoice.iter().try_for_each(|invoice| self.check_draft(invoice, &item.customer))
            }
            Change::Invoice(invoice) => self.check_customer(&invoice.customer),
            Change::Add { invoice_id, item_ids } => item_ids.iter().try_for_each(|id| {
                let item = self.items.iter().find(|item| item.id == *id);
                let item = item.ok_or_else(|| missing("invoiceitem", id))?;
                if item_ids.len() > 250 {
                    return Err(refusal("INVALID_REQUEST_ERROR", "too many lines".to_owned()));
                }
                if item.invoice.is_some() {
                    return Err(refusal("INVALID_REQUEST_ERROR", format!("{id} is on an invoice already")));
                }
                self.check_draft(invoice_id, &item.item.customer)
            }),
            Change::Finalize { invoice_id } => {
                let invoice = self.invoices.iter().find(|invoice| invoice.id == *invoice_id);
                let invoice = invoice.ok_or_else(|| missing("invoice", invoice_id))?;
                self.check_draft(invoice_id, &invoice.invoice.customer)
            }
        }
    }

    /// One that is not known was made by [`Memory::invoice`].
    fn place(&self, invoice_id: Option<&str>) -> Place {
        let Some(id) = invoice_id else { return Place::Pending };
        match self.invoices.iter().find(|invoice| invoice.id == id) {
            Some(Invoice { invoice, is_draft: true, goes_on, created, .. }) => Place::Draft {
                subscription: invoice.subscription.clone(),
                goes_on: *goes_on,
                is_ours: invoice.metadata.contains_key(SETTLEMENT_ID),
                created: *created,
            },
            _ => Place::Final,
        }
    }

    fn check_customer(&self, customer: &str) -> Result<(), Refusal> {
        if self.customers.contains(customer) { Ok(()) } else { Err(missing("customer", customer)) }
    }

    fn check_draft(&self, invoice_id: &str, customer: &str) -> Result<(), Refusal> {
        match self.invoices.iter().find(|invoice| invoice.id == invoice_id) {
            Some(invoice) if invoice.invoice.customer != customer => {
                Err(refusal("INVALID_REQUEST_ERROR", format!("{invoice_id} is another customer's")))
            }
            Some(invoice) if invoice.is_draft => Ok(()),
            Some(_) => Err(refusal("INVOICE_NOT_EDITABLE", format!("{invoice_id} is finalised"))),
            None => Err(missing("invoice", invoice_id)),
        }
    }

    fn apply(&mut self, change: &Change) -> String {
        match change {
            Change::Item(item) => {
                let id = self.next_id("ii");
                let invoice = item.invoice.clone();
                self.items.push(Item { id: id.clone(), item: item.clone(), invoice });
                id
            }
            Change::Invoice(invoice) => {
                let id = self.next_id("in");
                let invoice = invoice.clone();
                let created = Utc::now();
                self.invoices.push(Invoice {
                    id: id.clone(),
                    invoice,
                    is_draft: true,
                    goes_on: false,
                    created,
                });
                id
            }
            Change::Add { invoice_id, item_ids } => {
                for item in self.items.iter_mut().filter(|item| item_ids.contains(&item.id)) {
                    item.invoice = Some(invoice_id.clone());
                }
                invoice_id.clone()
            }
            Change::Finalize { invoice_id } => {
                for invoice in self.invoices.iter_mut().filter(|invoice| invoice.id == *invoice_id) {
                    invoice.is_draft = false;
                }
                invoice_id.clone()
            }
        }
    }
}

impl Memory {
    fn change(&self, change: Change, key: &str) -> BoxFuture<'_, Outcome> {
        let key = key.to_owned();
        let call = async move {
            let fault = self.state().faults.pop_front();
            if fault == Some(Fault::Lost) {
                return unknown(Advice::Again, "the request was lost");
            }
            let answer = self.state().answer(change, &key, fault);
            match fault {
                Some(Fault::AnswerLost) => unknown(Advice::Again, "the answer was lost"),
                Some(Fault::LateAnswer) => {
                    self.unanswered.send_modify(|n| *n += 1);
                    // The sender lives in `self`.
                    drop(self.released.subscribe().wait_for(|released| *released).await);
                    answer
                }
                Some(Fault::NoAnswer) => {
                    self.unanswered.send_modify(|n| *n += 1);
                    futures::future::pending().await
                }
                _ => answer,
            }
        };
        call.boxed()
    }
}

impl Payments for Memory {
    fn create_invoice_item<'a>(&'a self, item: &'a InvoiceItem, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.change(Change::Item(item.clone()), key)
    }

    fn create_invoice<'a>(&'a self, invoice: &'a NewInvoice, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.change(Change::Invoice(invoice.clone()), key)
    }

    fn add_items<'a>(
        &'a self,
        invoice_id: &'a str,
        item_ids: &'a [String],
        key: &'a str,
    ) -> BoxFuture<'a, Outcome> {
        self.change(Change::Add { invoice_id: invoice_id.to_owned(), item_ids: item_ids.to_vec() }, key)
    }

    fn finalize_invoice<'a>(&'a self, invoice_id: &'a str, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.change(Change::Finalize { invoice_id: invoice_id.to_owned() }, key)
    }

    fn places<'a>(
        &'a self,
        customer: &'a str,
        _: &'a Pace,
    ) -> BoxFuture<'a, Result<HashMap<String, Place>, Doubt>> {
        let state = self.state();
        let own = state.items.iter().filter(|item| item.item.customer == customer);
        let places = own.map(|item| (item.id.clone(), state.place(item.invoice.as_deref()))).collect();
        futures::future::ready(Ok(places)).boxed()
    }

    fn find_invoices<'a>(
        &'a self,
        customer: &'a str,
        settlement_id: Uuid,
        _: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<FoundInvoice>, Doubt>> {
        let wanted = settlement_id.to_string();
        let state = self.state();
        let found = state
            .invoices
            .iter()
            .filter(|i| i.invoice.customer == customer)
            .filter(|i| i.invoice.metadata.get(SETTLEMENT_ID) == Some(&wanted))
            .map(|i| FoundInvoice { invoice_id: i.id.clone(), is_draft: i.is_draft })
            .collect();
        futures::future::ready(Ok(found)).boxed()
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
            .filter(|i| i.item.customer == customer && i.item.metadata.get(CHARGE_ID) == Some(&wanted))
            .map(|i| FoundItem {
                item_id: i.id.clone(),
                amount_minor: i.item.amount_minor,
                is_invoiced: i.invoice.is_some(),
            })
            .collect();
        futures::future::ready(Ok(found)).boxed()
    }

    fn has_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<bool, Doubt>> {
        let found = self.state().items.iter().any(|item| item.id == item_id);
        futures::future::ready(Ok(found)).boxed()
    }

    fn delete_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<(), Doubt>> {
        let mut state = self.state();
        let State { items, invoices, .. } = &mut *state;
        let is_draft = |id: &String| invoices.iter().any(|invoice| invoice.id == *id && invoice.is_draft);
        let is_final = items
            .iter()
            .any(|item| item.id == item_id && item.invoice.as_ref().is_some_and(|id| !is_draft(id)));
        let deleted = if is_final {
            Err(Doubt {
                advice: Advice::Later,
                retry_after: None,
                message: "the item is on a finalised invoice".to_owned(),
            })
        } else {
            items.retain(|item| item.id != item_id);
            Ok(())
        };
        futures::future::ready(deleted).boxed()
    }
}

fn missing(what: &str, id: &str) -> Refusal {
    refusal("RESOURCE_MISSING", format!("no such {what}: {id}"))
}

fn refusal(reason: &str, message: String) -> Refusal {
    Refusal { reason: reason.to_owned(), message }
}

fn unknown(advice: Advice, message: &str) -> Outcome {
    Outcome::Unknown(Doubt { advice, retry_after: None, message: message.to_owned() })
}
