//! Invoices: drafts that take items, finalised ones that no longer change.
//!
//! `draft` makes them, `collect` finalises and collects them, `api` and `add_lines` are the endpoints,
//! `form` the JSON form.

mod add_lines;
mod api;
mod collect;
mod draft;
mod form;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::http::error::ApiError;
use crate::objects::Resource as _;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::subscriptions::{Collection, Period};
use crate::state::State;

pub(crate) use add_lines::add_lines;
pub(crate) use api::{
    create, delete, finalize, lines, list, mark_uncollectible, pay, retrieve, update, void,
};
pub(crate) use collect::{collect_now, fall_due, note_delivery, stop_collecting, void_unpaid};
pub(crate) use draft::{draft_for, draft_of_pending_items};

const MAX_ITEMS: usize = 250;
/// For how long an automatic draft can be edited once its webhook was delivered.
const DRAFT_SECONDS: i64 = 3600;
/// For how long that webhook is waited for.
const WEBHOOK_SECONDS: i64 = 72 * 3600;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Invoice {
    id: String,
    created: i64,
    pub(crate) customer: String,
    pub(crate) currency: String,
    pub(crate) subscription: Option<String>,
    pub(crate) status: Status,
    #[serde(default)]
    reason: Reason,
    /// When the items on it were added: for an invoice of a subscription, the period before.
    #[serde(default)]
    period: Option<Period>,
    /// Its lines, in their order.
    items: Vec<Line>,
    description: Option<String>,
    metadata: BTreeMap<String, String>,
    auto_advance: bool,
    collection_method: String,
    days_until_due: Option<i64>,
    #[serde(default)]
    finalizes_at: Option<i64>,
    /// Whether `finalizes_at` was asked for, so that no webhook is waited for.
    #[serde(default)]
    scheduled: bool,
    #[serde(default)]
    webhooks_delivered_at: Option<i64>,
    #[serde(default)]
    next_payment_attempt: Option<i64>,
    #[serde(default)]
    attempt_count: u32,
    /// The customer's balance before and after it was finalised.
    #[serde(default)]
    starting_balance: i64,
    #[serde(default)]
    ending_balance: Option<i64>,
    #[serde(default)]
    overdue: bool,
    number: Option<String>,
    finalized_at: Option<i64>,
    paid_at: Option<i64>,
    voided_at: Option<i64>,
    #[serde(default)]
    uncollectible_at: Option<i64>,
}

/// A line: an invoice item, or what an item of the subscription costs for a period.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Item(String),
    Plan(PlanLine),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PlanLine {
    id: String,
    subscription_item: String,
    price: String,
    product: String,
    unit_amount_decimal: String,
    quantity: i64,
    amount: i64,
    description: String,
    period: Period,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Draft,
    Open,
    Paid,
    Uncollectible,
    Void,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    #[default]
    Manual,
    SubscriptionCreate,
    SubscriptionCycle,
    SubscriptionUpdate,
}

impl Invoice {
    fn items<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a InvoiceItem> {
        self.item_ids().filter_map(move |id| state.get::<InvoiceItem>(id))
    }

    /// The ids of the invoice items on it.
    pub(crate) fn item_ids(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.items.iter().filter_map(|line| match line {
            Line::Item(id) => Some(id.as_str()),
            Line::Plan(_) => None,
        })
    }

    pub(crate) fn total(&self, state: &State) -> i64 {
        let plan = self.items.iter().map(|line| match line {
            Line::Item(_) => 0,
            Line::Plan(line) => line.amount,
        });
        self.items(state).map(|item| item.amount).sum::<i64>() + plan.sum::<i64>()
    }

    /// What the customer has to pay, after the balance.
    pub(crate) fn due_amount(&self, state: &State) -> i64 {
        (self.total(state) + self.starting_balance).max(0)
    }

    fn lines_url(&self) -> String {
        format!("/v1/invoices/{}/lines", self.id)
    }

    fn is_automatic(&self) -> bool {
        self.collection_method == Collection::AUTOMATIC
    }

    /// Whether a payment of it has failed, or its time to pay has passed.
    pub(crate) fn is_overdue(&self) -> bool {
        self.status == Status::Open && (self.attempt_count > 0 || self.overdue)
    }

    fn due_date(&self) -> Option<i64> {
        self.days_until_due.map(|days| self.created + days * 86_400)
    }

    /// When a draft is finalised, it cannot be edited any more.
    fn next_due(&self) -> Option<i64> {
        match self.status {
            Status::Draft if self.auto_advance => {
                let waits = self.webhooks_delivered_at.is_none() && !self.scheduled;
                if waits { Some(self.created + WEBHOOK_SECONDS) } else { self.finalizes_at }
            }
            Status::Open if self.is_automatic() => self.next_payment_attempt.filter(|_| self.auto_advance),
            Status::Open if !self.overdue => self.due_date(),
            _ => None,
        }
    }

    pub(crate) fn check_draft(&self) -> Result<(), ApiError> {
        if self.status == Status::Draft {
            return Ok(());
        }
        let message = format!("The invoice '{}' is no longer editable: it is finalized.", self.id);
        Err(ApiError::refused(message).code("invoice_not_editable").param("invoice"))
    }

    /// Puts an item on the draft.
    pub(crate) fn attach(&mut self, item: &mut InvoiceItem) -> Result<(), ApiError> {
        self.check_draft()?;
        let refuse = |message: String| Err(ApiError::refused(message).param("invoice"));
        if self.customer != item.customer {
            return refuse(format!("The invoice '{}' is of another customer.", self.id));
        }
        if self.currency != item.currency {
            return refuse(format!(
                "The invoice '{}' is in {}, the item in {}.",
                self.id, self.currency, item.currency
            ));
        }
        if self.item_ids().count() >= MAX_ITEMS {
            return refuse(format!("An invoice can have up to {MAX_ITEMS} items."));
        }
        item.invoice = Some(self.id.clone());
        self.items.push(Line::Item(item.id().to_owned()));
        Ok(())
    }

    pub(crate) fn detach(&mut self, item: &str) {
        self.items.retain(|line| !matches!(line, Line::Item(id) if id == item));
    }
}
