//! The port to whoever holds the customers' invoices, and [`stripe`], which does it over HTTP. The engine's
//! tests have a second implementation, in memory; one contract test holds the two together.

pub mod books;
pub mod pace;
pub mod stripe;

use std::time::Duration;

use futures::future::BoxFuture;
use uuid::Uuid;

use crate::domain::charge::InvoiceItem;
use pace::Pace;

/// Invoice items of customers.
///
/// All calls end; none tries again by itself. A call that is dropped may still take effect.
pub trait Payments: Send + Sync {
    /// Creates a pending invoice item. The same key never creates two; with the same key the item must be
    /// the same.
    fn create_invoice_item<'a>(&'a self, item: &'a InvoiceItem, key: &'a str) -> BoxFuture<'a, Outcome>;

    /// All of a customer's invoice items of a charge: more than one, where a request took effect after it
    /// was given up. Where that takes more than one request, each after the first waits for its turn. A
    /// listing that cannot be read to its end, within bounds, is a doubt: what is not in it may be there.
    fn find_items<'a>(
        &'a self,
        customer: &'a str,
        charge_id: Uuid,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<FoundItem>, Doubt>>;

    /// Deletes an item that is on no finalised invoice. One that is not there counts as deleted.
    fn delete_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<(), Doubt>>;
}

/// An item of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundItem {
    /// Its id.
    pub item_id: String,
    /// Its amount in minor units.
    pub amount_minor: i64,
    /// Whether it is on an invoice already.
    pub is_invoiced: bool,
}

/// What became of creating an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Succeeded {
        /// Its id.
        item_id: String,
    },
    /// It is not there, and sending it again would not change that.
    FailedForGood(Refusal),
    /// It may or may not be there.
    Unknown(Doubt),
}

/// Why an item was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As a word, e.g. `CARD_DECLINED`.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

/// Why it is not known what became of a request, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// What to do.
    pub advice: Advice,
    /// How long to leave everything alone, if the other side says so.
    pub retry_after: Option<Duration>,
    /// In a few words, for people.
    pub message: String,
}

/// What to do about a doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Send the same again, with the same key.
    Again,
    /// Sending the same again brings the same answer: look whether the item is there.
    Look,
    /// Nothing now: the next run may.
    Later,
}
