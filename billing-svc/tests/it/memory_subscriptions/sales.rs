//! [`Sales`] in memory: keys and refusals behave as at Stripe, and what goes wrong can be said beforehand.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};
use futures::{FutureExt, future::BoxFuture};
use nexus_billing::{
    domain::{
        stripe_change::{CHECKOUT_LIFE, NewCheckout, SubscriptionChange},
        stripe_customer::NewCustomer,
        stripe_objects::{CheckoutSession, CheckoutState, Customer, Price, Subscription},
        stripe_subscription::is_over,
    },
    payments::{Advice, Doubt, Outcome, Refusal, sales::Sales},
};
use nexus_core::plan::SubscriptionStatus;

use super::{MemorySubscriptions, State};
use crate::memory::Fault;

/// A price that is sold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPrice {
    pub(crate) id: String,
    pub(crate) lookup_key: Option<String>,
    pub(crate) currency: &'static str,
    pub(crate) is_active: bool,
}

/// What was asked for, and what is to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Sold {
    answers: HashMap<String, (Asked, Outcome)>,
    faults: VecDeque<Fault>,
    checkouts: HashMap<String, NewCheckout>,
    made: usize,
    refuses: u32,
    /// An end is not taken back, whatever is asked for.
    pub(crate) keeps_ends: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Customer(NewCustomer),
    Open(NewCheckout),
    End(String),
    Change(String, SubscriptionChange),
}

impl MemorySubscriptions {
    /// Adds a price with a lookup key.
    pub(crate) fn add_price(&self, id: &str, lookup_key: &str, currency: &'static str) {
        let price = MemoryPrice {
            id: id.to_owned(),
            lookup_key: Some(lookup_key.to_owned()),
            currency,
            is_active: true,
        };
        self.state().prices.push(price);
    }

    /// Lets the next call that changes something go wrong.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.state().sold.faults.push_back(fault);
    }

    /// Refuses the next call that changes something.
    pub(crate) fn refuse_next(&self) {
        self.state().sold.refuses += 1;
    }

    /// Waits until that many calls never got an answer.
    pub(crate) async fn until_unanswered(&self, at_least: usize) {
        // The sender lives in `self`.
        if self.unanswered.subscribe().wait_for(|n| *n >= at_least).await.is_err() {
            futures::future::pending().await
        }
    }

    /// A session of another account is opened.
    pub(crate) fn open_of_another(&self, eco_id: &str) -> String {
        let checkout = NewCheckout {
            eco_id: eco_id.to_owned(),
            customer: None,
            email: None,
            price_id: "price_pro".to_owned(),
            success_url: String::new(),
            cancel_url: String::new(),
            expires: Utc::now() + CHECKOUT_LIFE,
        };
        self.state().apply(&Asked::Open(checkout))
    }

    /// A session's time is over.
    pub(crate) fn time_is_over(&self, session_id: &str) {
        if let Some(session) = self.state().sessions.get_mut(session_id) {
            session.state = CheckoutState::Expired;
            session.url = None;
        }
    }

    /// When a session was opened, and by which customer that was there before.
    pub(super) fn opened(state: &State, session_id: &str) -> Option<(DateTime<Utc>, Option<String>)> {
        let checkout = state.sold.checkouts.get(session_id)?;
        Some((checkout.expires - CHECKOUT_LIFE, checkout.customer.clone()))
    }

    /// Sessions that are open.
    pub(crate) fn open_sessions(&self) -> Vec<String> {
        let state = self.state();
        let open = state.sessions.iter().filter(|(_, session)| session.state == CheckoutState::Open);
        open.map(|(id, _)| id.clone()).collect()
    }

    /// The customer goes through a checkout: there is a subscription, which is named.
    pub(crate) fn go_through(&self, session_id: &str) -> Option<String> {
        let mut state = self.state();
        let checkout = state.sold.checkouts.get(session_id)?.clone();
        let customer = checkout.customer.clone().unwrap_or_else(|| state.next_id("cus"));
        let id = state.next_id("sub");
        let item_id = state.next_id("si");
        let lookup_key = state.prices.iter().find(|p| p.id == checkout.price_id)?.lookup_key.clone();
        let subscription = Subscription {
            id: id.clone(),
            customer,
            status: SubscriptionStatus::Active,
            prices: vec![Price { id: checkout.price_id, lookup_key, item_id }],
            anchor: Utc::now(),
            created: Utc::now(),
            ended: None,
            cancel_at: None,
            ends_by_date: false,
            eco_id: Some(checkout.eco_id),
        };
        state.subscriptions.insert(id.clone(), subscription);
        let session = state.sessions.get_mut(session_id)?;
        *session = CheckoutSession {
            subscription: Some(id.clone()),
            state: CheckoutState::Complete,
            url: None,
            ..session.clone()
        };
        Some(id)
    }

    fn ask(&self, asked: Asked, key: &str) -> BoxFuture<'_, Outcome> {
        let key = key.to_owned();
        let call = async move {
            let fault = self.state().sold.faults.pop_front();
            if fault == Some(Fault::Lost) {
                return unknown(Advice::Again, "the request was lost");
            }
            let answer = self.state().answer(asked, &key, fault);
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
}

impl State {
    fn next_id(&mut self, prefix: &str) -> String {
        self.sold.made += 1;
        format!("{prefix}_sold{}", self.sold.made)
    }

    fn answer(&mut self, asked: Asked, key: &str, fault: Option<Fault>) -> Outcome {
        if let Some((sent, answer)) = self.sold.answers.get(key) {
            return match answer {
                _ if *sent != asked => unknown(Advice::Look, "the key was used with other parameters"),
                Outcome::Unknown(doubt) => Outcome::Unknown(Doubt { advice: Advice::Look, ..doubt.clone() }),
                answer => answer.clone(),
            };
        }
        if self.sold.refuses > 0 {
            self.sold.refuses -= 1;
            return Outcome::FailedForGood(refusal("CARD_DECLINED", "the card was declined"));
        }
        // What is refused is not kept for the key.
        if let Err(refusal) = self.check(&asked) {
            return Outcome::FailedForGood(refusal);
        }
        let answer = match fault {
            Some(Fault::StoredError) => unknown(Advice::Again, "an error of the other side's own"),
            Some(Fault::StoredErrorAfterEffect) => {
                self.apply(&asked);
                unknown(Advice::Again, "an error of the other side's own")
            }
            _ => Outcome::Succeeded { id: self.apply(&asked), replayed: false },
        };
        self.sold.answers.insert(key.to_owned(), (asked, answer.clone()));
        answer
    }

    fn check(&self, asked: &Asked) -> Result<(), Refusal> {
        match asked {
            Asked::Customer(_) => Ok(()),
            Asked::Open(checkout) => self.check_price(&checkout.price_id),
            Asked::End(session_id) => match self.sessions.get(session_id) {
                Some(session) if session.state == CheckoutState::Open => Ok(()),
                Some(_) => Err(refusal("INVALID_REQUEST_ERROR", "it is not open")),
                None => Err(refusal("RESOURCE_MISSING", "no such session")),
            },
            Asked::Change(id, change) => {
                let found = self.subscriptions.get(id);
                match (found, change) {
                    (_, SubscriptionChange::EndNow) => Ok(()),
                    (None, _) => Err(refusal("RESOURCE_MISSING", "no such subscription")),
                    (Some(found), _) if is_over(found) => {
                        Err(refusal("INVALID_CANCELED_SUBSCRIPTION_FIELDS", "it has ended"))
                    }
                    (Some(_), SubscriptionChange::Price { price_id, .. }) => self.check_price(price_id),
                    (Some(_), _) => Ok(()),
                }
            }
        }
    }

    fn check_price(&self, id: &str) -> Result<(), Refusal> {
        let is_sold = self.prices.iter().any(|price| price.id == id && price.is_active);
        if is_sold { Ok(()) } else { Err(refusal("RESOURCE_MISSING", "no such price")) }
    }

    fn apply(&mut self, asked: &Asked) -> String {
        match asked {
            Asked::Customer(new) => {
                let id = self.next_id("cus");
                let customer = Customer { eco_id: Some(new.eco_id.to_string()), currency: None };
                self.customers.insert(id.clone(), customer);
                id
            }
            Asked::Open(checkout) => {
                let id = self.next_id("cs");
                let session = CheckoutSession {
                    id: id.clone(),
                    eco_id: Some(checkout.eco_id.clone()),
                    subscription: None,
                    state: CheckoutState::Open,
                    url: Some(format!("https://checkout.example/{id}")),
                };
                self.sessions.insert(id.clone(), session);
                self.sold.checkouts.insert(id.clone(), checkout.clone());
                id
            }
            Asked::End(id) => {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.state = CheckoutState::Expired;
                    session.url = None;
                }
                id.clone()
            }
            Asked::Change(id, change) => {
                let now = Utc::now();
                let keeps_ends = self.sold.keeps_ends;
                let lookup_key = match change {
                    SubscriptionChange::Price { price_id, .. } => self
                        .prices
                        .iter()
                        .find(|price| price.id == *price_id)
                        .and_then(|p| p.lookup_key.clone()),
                    _ => None,
                };
                if let Some(found) = self.subscriptions.get_mut(id) {
                    match change {
                        SubscriptionChange::Price { item_id, price_id, by_date, .. } => {
                            go_on(found, *by_date);
                            for price in found.prices.iter_mut().filter(|price| price.item_id == *item_id) {
                                price.id.clone_from(price_id);
                                price.lookup_key.clone_from(&lookup_key);
                            }
                        }
                        SubscriptionChange::EndWithPeriod => {
                            let period = nexus_core::period::Period::containing(found.anchor, now);
                            found.cancel_at = Some(period.end);
                            found.ends_by_date = false;
                        }
                        SubscriptionChange::GoOn { .. } if keeps_ends => {}
                        SubscriptionChange::GoOn { by_date } => go_on(found, *by_date),
                        SubscriptionChange::EndNow => {
                            found.status = SubscriptionStatus::Canceled;
                            found.ended = Some(now);
                        }
                    }
                }
                id.clone()
            }
        }
    }
}

impl Sales for MemorySubscriptions {
    fn price<'a>(
        &'a self,
        names: &'a [String],
        currency: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Doubt>> {
        let state = self.state();
        let fits = |price: &&MemoryPrice| price.is_active && price.currency.eq_ignore_ascii_case(currency);
        let by_key =
            |name: &String| state.prices.iter().filter(fits).find(|p| p.lookup_key.as_ref() == Some(name));
        let by_id = |name: &String| state.prices.iter().filter(fits).find(|price| price.id == *name);
        let found = names.iter().find_map(by_key).or_else(|| names.iter().find_map(by_id));
        futures::future::ready(Ok(found.map(|price| price.id.clone()))).boxed()
    }

    fn create_customer<'a>(&'a self, customer: &'a NewCustomer, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.ask(Asked::Customer(customer.clone()), key)
    }

    fn open_checkout<'a>(&'a self, checkout: &'a NewCheckout, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.ask(Asked::Open(checkout.clone()), key)
    }

    fn end_checkout<'a>(&'a self, session_id: &'a str, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.ask(Asked::End(session_id.to_owned()), key)
    }

    fn change_subscription<'a>(
        &'a self,
        id: &'a str,
        change: &'a SubscriptionChange,
        key: &'a str,
    ) -> BoxFuture<'a, Outcome> {
        self.ask(Asked::Change(id.to_owned(), change.clone()), key)
    }
}

/// A date is taken away only where that is asked for.
fn go_on(found: &mut Subscription, by_date: bool) {
    if by_date == found.ends_by_date {
        found.cancel_at = None;
        found.ends_by_date = false;
    }
}

fn refusal(reason: &str, message: &str) -> Refusal {
    Refusal { reason: reason.to_owned(), message: message.to_owned() }
}

fn unknown(advice: Advice, message: &str) -> Outcome {
    Outcome::Unknown(Doubt { advice, retry_after: None, message: message.to_owned() })
}
