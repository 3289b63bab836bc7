//! All objects and stored answers, and what falls due when.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::objects::customers::Customer;
use crate::objects::events::{Event, Unreliable};
use crate::objects::{Kind, Object, Resource};

/// Stripe may prune an idempotency key once it is 24 hours old; here it always does.
pub(crate) const KEY_LIFETIME_SECONDS: i64 = 24 * 60 * 60;

/// One step of a transaction, and what a journal line is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    Put(Box<Object>),
    Remove(Kind, String),
    Remember(StoredAnswer),
    AdvanceClock(i64),
    Configure(Settings),
}

/// What an account can set at Stripe's dashboard and has an effect here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The days after a failed automatic payment on which it is tried again.
    pub(crate) retry_days: Vec<u32>,
    /// What becomes of the subscription once they are used up.
    pub(crate) after_retries: AfterRetries,
    /// What becomes of the drafts of a subscription that ends at once. This is no setting at Stripe: its pages leave it open.
    pub(crate) drafts_after_cancel: DraftsAfterCancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AfterRetries {
    Cancel,
    Unpaid,
    PastDue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DraftsAfterCancel {
    /// They stay drafts.
    Stop,
    /// They are finalised and collected as ever.
    GoOn,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry_days: vec![3, 5, 7],
            after_retries: AfterRetries::Cancel,
            drafts_after_cancel: DraftsAfterCancel::Stop,
        }
    }
}

/// The answer kept for an idempotency key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredAnswer {
    pub(crate) slot: KeySlot,
    /// Digest of method, path and parameters.
    pub(crate) fingerprint: String,
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) request_id: String,
    pub(crate) stored_at: i64,
}

/// An idempotency key of one API key (of which only a digest is kept).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct KeySlot {
    pub(crate) api_key_digest: String,
    pub(crate) key: String,
}

#[derive(Default)]
pub(crate) struct State {
    tables: BTreeMap<Kind, Table>,
    answers: HashMap<KeySlot, StoredAnswer>,
    answers_by_age: VecDeque<(i64, KeySlot)>,
    /// What happens by itself and when, by the clock it goes by: a test clock, or the one of all.
    due: BTreeMap<Option<String>, BTreeSet<Due>>,
    /// The events with a webhook to send, by when.
    deliveries: BTreeSet<(i64, u64)>,
    pub(crate) settings: Settings,
    /// How webhooks go wrong. Not kept over restarts, as other faults are not.
    pub(crate) unreliable: Unreliable,
    /// How far the clock has been moved ahead of the real one.
    pub(crate) clock_advance: i64,
}

/// Something that happens by itself to the object of a row. What falls due at once comes in the
/// order of kinds, then of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: i64,
    kind: Kind,
    row: u64,
}

/// The objects of one kind in the order of their creation.
#[derive(Default)]
struct Table {
    rows: BTreeMap<u64, Object>,
    row_of: HashMap<String, u64>,
    /// The rows of each customer.
    of_customer: HashMap<String, BTreeSet<u64>>,
    next: u64,
}

/// Rows of a table.
type Rows<'a, T> = Box<dyn DoubleEndedIterator<Item = &'a T> + 'a>;

impl State {
    pub(crate) fn get<T: Resource>(&self, id: &str) -> Option<&T> {
        self.object(T::KIND, id).and_then(T::from_object)
    }

    pub(crate) fn object(&self, kind: Kind, id: &str) -> Option<&Object> {
        self.object_at(kind, self.row(kind, id)?)
    }

    /// The object of any kind.
    pub(crate) fn find(&self, id: &str) -> Option<&Object> {
        Kind::ALL.iter().find_map(|kind| self.object(*kind, id))
    }

    pub(crate) fn row(&self, kind: Kind, id: &str) -> Option<u64> {
        self.tables.get(&kind)?.row_of.get(id).copied()
    }

    pub(crate) fn object_at(&self, kind: Kind, row: u64) -> Option<&Object> {
        self.tables.get(&kind)?.rows.get(&row)
    }

    /// Oldest first.
    pub(crate) fn all<T: Resource>(&self) -> Rows<'_, T> {
        self.rows(None, (Bound::Unbounded, Bound::Unbounded))
    }

    /// Those of a customer, oldest first.
    pub(crate) fn of_customer<T: Resource>(&self, customer: &str) -> Rows<'_, T> {
        self.rows(Some(customer), (Bound::Unbounded, Bound::Unbounded))
    }

    /// The rows of a range, of one customer if so asked, oldest first.
    pub(crate) fn rows<T: Resource>(
        &self,
        customer: Option<&str>,
        range: (Bound<u64>, Bound<u64>),
    ) -> Rows<'_, T> {
        let Some(table) = self.tables.get(&T::KIND) else {
            return Box::new(std::iter::empty());
        };
        let Some(customer) = customer else {
            return Box::new(table.rows.range(range).filter_map(|(_, object)| T::from_object(object)));
        };
        let rows = table.of_customer.get(customer).into_iter().flat_map(move |rows| rows.range(range));
        Box::new(rows.filter_map(move |row| T::from_object(table.rows.get(row)?)))
    }

    pub(crate) fn count<T: Resource>(&self) -> usize {
        self.tables.get(&T::KIND).map_or(0, |table| table.rows.len())
    }

    /// How many events there have ever been.
    pub(crate) fn events_so_far(&self) -> u64 {
        self.tables.get(&Kind::Event).map_or(0, |table| table.next)
    }

    pub(crate) fn answer(&self, slot: &KeySlot) -> Option<&StoredAnswer> {
        self.answers.get(slot)
    }

    pub(crate) fn prune_answers(&mut self, now: i64) {
        while let Some((stored_at, slot)) = self.answers_by_age.front() {
            if now - stored_at < KEY_LIFETIME_SECONDS {
                break;
            }
            // A key that was pruned and used again has a younger answer, which stays.
            if self.answers.get(slot).is_some_and(|answer| answer.stored_at == *stored_at) {
                self.answers.remove(slot);
            }
            self.answers_by_age.pop_front();
        }
    }

    /// When something next happens by itself on a clock.
    pub(crate) fn next_due(&self, clock: Option<&String>) -> Option<i64> {
        Some(self.due.get(&clock.cloned())?.first()?.at)
    }

    /// What next happens by itself on a clock, if it does until `until`.
    pub(crate) fn first_due(&self, clock: Option<&String>, until: i64) -> Option<(i64, Object)> {
        let due = self.due.get(&clock.cloned())?.first().filter(|due| due.at <= until)?;
        Some((due.at, self.object_at(due.kind, due.row)?.clone()))
    }

    /// When the next webhook is sent.
    pub(crate) fn next_delivery(&self) -> Option<i64> {
        self.deliveries.first().map(|(at, _)| *at)
    }

    /// The events with a webhook to send until `until`, in the order of their times.
    pub(crate) fn due_deliveries(&self, until: i64) -> impl Iterator<Item = &Event> {
        let due = self.deliveries.range(..=(until, u64::MAX));
        due.filter_map(|(_, row)| Event::from_object(self.object_at(Kind::Event, *row)?))
    }

    /// The test clock an object goes by.
    pub(crate) fn clock_of(&self, object: &Object) -> Option<String> {
        let customer = match object {
            Object::Customer(customer) => Some(customer),
            other => self.get::<Customer>(other.customer()?),
        };
        customer?.test_clock.clone()
    }

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(object) => {
                let known = self.row(object.kind(), object.id());
                let table = self.tables.entry(object.kind()).or_default();
                let row = known.unwrap_or(table.next);
                table.next = table.next.max(row + 1);
                self.set(object.kind(), row, Some(*object));
            }
            Change::Remove(kind, id) => {
                if let Some(row) = self.row(kind, &id) {
                    self.set(kind, row, None);
                }
            }
            Change::Remember(answer) => {
                self.answers_by_age.push_back((answer.stored_at, answer.slot.clone()));
                self.answers.insert(answer.slot.clone(), answer);
            }
            Change::AdvanceClock(seconds) => self.clock_advance += seconds,
            Change::Configure(settings) => self.settings = settings,
        }
    }

    /// The JSON form of any object, by its id.
    pub(crate) fn render_by_id(&self, id: &str) -> Option<Value> {
        self.find(id).map(|object| object.render(self))
    }

    /// All but the events, which have a list of their own.
    pub(crate) fn render_all(&self) -> serde_json::Map<String, Value> {
        let kinds = Kind::ALL.iter().filter(|kind| **kind != Kind::Event);
        kinds
            .map(|kind| {
                let rows = self.tables.get(kind).map(|table| table.rows.values());
                let rendered = rows.into_iter().flatten().map(|object| object.render(self));
                (kind.collection().to_owned(), Value::Array(rendered.collect()))
            })
            .collect()
    }

    /// Puts an object into its row, or clears that, and keeps the indices true.
    pub(crate) fn set(&mut self, kind: Kind, row: u64, object: Option<Object>) {
        if let Some(old) = self.tables.entry(kind).or_default().rows.remove(&row) {
            self.index(kind, row, &old, false);
            let table = self.tables.entry(kind).or_default();
            table.row_of.remove(old.id());
            if let Some(rows) = old.customer().and_then(|customer| table.of_customer.get_mut(customer)) {
                rows.remove(&row);
            }
        }
        if let Some(new) = object {
            self.index(kind, row, &new, true);
            let table = self.tables.entry(kind).or_default();
            table.row_of.insert(new.id().to_owned(), row);
            if let Some(customer) = new.customer() {
                table.of_customer.entry(customer.to_owned()).or_default().insert(row);
            }
            table.rows.insert(row, new);
        }
    }

    fn index(&mut self, kind: Kind, row: u64, object: &Object, there: bool) {
        if let Some(at) = object.due() {
            let clock = self.clock_of(object);
            let due = self.due.entry(clock).or_default();
            let entry = Due { at, kind, row };
            if there {
                due.insert(entry)
            } else {
                due.remove(&entry)
            };
        }
        if let Object::Event(event) = object
            && let Some(at) = event.next_delivery()
        {
            if there {
                self.deliveries.insert((at, row))
            } else {
                self.deliveries.remove(&(at, row))
            };
        }
    }
}
