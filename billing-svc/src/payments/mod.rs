//! The ports to whoever holds the customers' invoices ([`Payments`]) and [`subscriptions`], and sells these ([`sales`]);
//! and [`stripe`], which does it all over HTTP. The tests have a second implementation of each, in memory; one contract test holds the two together.

pub mod books;
pub mod pace;
pub mod sales;
pub mod stripe;
pub mod subscriptions;

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use uuid::Uuid;

use crate::domain::{charge::InvoiceItem, invoice::NewInvoice};
use pace::Pace;

/// Invoice items of customers, and invoices made for such items.
///
/// All calls end; none tries again by itself. A call that is dropped may still take effect. With the same key, what
/// is asked for must be the same, and never happens twice.
pub trait Payments: Send + Sync {
    /// Creates an invoice item: on the draft it names, else pending until the customer's next invoice takes it. One
    /// that names an invoice which is no draft any more is refused.
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

    /// Whether an item is there.
    fn has_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<bool, Doubt>>;

    /// Deletes an item that is on no finalised invoice. One that is not there counts as deleted.
    fn delete_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<(), Doubt>>;

    /// Where each of a customer's items is; paced and bounded as [`Self::find_items`] is. One whose draft was deleted
    /// while it was asked for is left out.
    fn places<'a>(
        &'a self,
        customer: &'a str,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<HashMap<String, Place>, Doubt>>;

    /// Creates an empty draft, which takes no pending items and is not finalised before it is told to: one that is
    /// left half done must not be closed without its items.
    fn create_invoice<'a>(&'a self, invoice: &'a NewInvoice, key: &'a str) -> BoxFuture<'a, Outcome>;

    /// All of a customer's invoices of a settlement; paced and bounded as [`Self::find_items`] is.
    fn find_invoices<'a>(
        &'a self,
        customer: &'a str,
        settlement_id: Uuid,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<FoundInvoice>, Doubt>>;

    /// Puts pending items on a draft, all or none.
    fn add_items<'a>(
        &'a self,
        invoice_id: &'a str,
        item_ids: &'a [String],
        key: &'a str,
    ) -> BoxFuture<'a, Outcome>;

    /// Finalises a draft, to be collected from then on.
    fn finalize_invoice<'a>(&'a self, invoice_id: &'a str, key: &'a str) -> BoxFuture<'a, Outcome>;
}

/// An invoice of a settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundInvoice {
    /// Its id.
    pub invoice_id: String,
    /// Whether it takes items and can be finalised.
    pub is_draft: bool,
}

/// Where an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On no invoice.
    Pending,
    /// On a draft.
    Draft {
        /// The subscription at Stripe whose draft it is, if it is one's.
        subscription: Option<String>,
        /// Whether it is finalised by itself.
        goes_on: bool,
        /// Whether a settlement has made it.
        is_ours: bool,
        /// When it was made.
        created: DateTime<Utc>,
    },
    /// On an invoice that is final.
    Final,
    /// On an invoice that is void: nobody is asked for it.
    Void,
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

/// What became of a request that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Succeeded {
        /// Id of what was made or changed.
        id: String,
        /// Whether this is the stored answer of an earlier request with the same key: what it made may be gone by now.
        /// Told of items and invoices.
        replayed: bool,
    },
    /// It is not done, and sending it again would not change that.
    FailedForGood(Refusal),
    /// It may or may not be done.
    Unknown(Doubt),
}

/// Why a request was refused.
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

impl Doubt {
    /// Nothing was asked, for the server stops.
    pub fn stopped() -> Self {
        Self { advice: Advice::Later, retry_after: None, message: "the server was stopped".to_owned() }
    }
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
