//! All objects and stored answers, and transactions over them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::Ids;
use crate::objects::{Kind, Object, Resource};

/// Stripe may prune an idempotency key once it is 24 hours old; here it always does.
pub(crate) const KEY_LIFETIME_SECONDS: i64 = 24 * 60 * 60;

/// One step of a transaction, and what a journal line is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    Put(Object),
    Remove(Kind, String),
    Remember(StoredAnswer),
    AdvanceClock(i64),
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
    /// How far the clock has been moved ahead of the real one.
    pub(crate) clock_advance: i64,
}

/// The objects of one kind in the order of their creation.
#[derive(Default)]
struct Table {
    rows: BTreeMap<u64, Object>,
    row_of: HashMap<String, u64>,
    next: u64,
}

impl State {
    pub(crate) fn get<T: Resource>(&self, id: &str) -> Option<&T> {
        self.object(T::KIND, id).and_then(T::from_object)
    }

    pub(crate) fn object(&self, kind: Kind, id: &str) -> Option<&Object> {
        let table = self.tables.get(&kind)?;
        table.rows.get(table.row_of.get(id)?)
    }

    /// Oldest first.
    pub(crate) fn all<T: Resource>(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.tables.get(&T::KIND).into_iter().flat_map(|table| table.rows.values()).filter_map(T::from_object)
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

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(object) => {
                let table = self.tables.entry(object.kind()).or_default();
                let row = *table.row_of.entry(object.id().to_owned()).or_insert(table.next);
                table.next = table.next.max(row + 1);
                table.rows.insert(row, object);
            }
            Change::Remove(kind, id) => {
                let table = self.tables.entry(kind).or_default();
                if let Some(row) = table.row_of.remove(&id) {
                    table.rows.remove(&row);
                }
            }
            Change::Remember(answer) => {
                self.answers_by_age.push_back((answer.stored_at, answer.slot.clone()));
                self.answers.insert(answer.slot.clone(), answer);
            }
            Change::AdvanceClock(seconds) => self.clock_advance += seconds,
        }
    }
}

/// What a JSON form is made from: the objects as they are at a moment.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) now: i64,
}

impl View<'_> {
    /// The JSON form of any object, by its id.
    pub(crate) fn render_by_id(&self, id: &str) -> Option<Value> {
        Kind::ALL.iter().find_map(|kind| self.state.object(*kind, id)).map(|object| object.render(self))
    }

    pub(crate) fn render_all(&self) -> serde_json::Map<String, Value> {
        Kind::ALL
            .iter()
            .map(|kind| {
                let rows = self.state.tables.get(kind).map(|table| table.rows.values());
                let rendered = rows.into_iter().flatten().map(|object| object.render(self));
                (kind.collection().to_owned(), Value::Array(rendered.collect()))
            })
            .collect()
    }
}

/// Changes that are seen at once, and taken back unless they are committed.
pub(crate) struct Tx<'a> {
    state: &'a mut State,
    ids: &'a mut Ids,
    now: i64,
    changes: Vec<Change>,
    undo: Vec<Undo>,
}

/// A row as it was, at its place in the order.
struct Undo {
    kind: Kind,
    id: String,
    before: Option<(u64, Object)>,
}

impl<'a> Tx<'a> {
    pub(crate) fn begin(state: &'a mut State, ids: &'a mut Ids, now: i64) -> Self {
        Self { state, ids, now, changes: Vec::new(), undo: Vec::new() }
    }

    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { state: self.state, now: self.now }
    }

    pub(crate) fn state(&self) -> &State {
        self.state
    }

    pub(crate) fn ids(&mut self) -> &mut Ids {
        self.ids
    }

    pub(crate) fn put(&mut self, resource: impl Resource) {
        let object: Object = resource.into();
        self.note(object.kind(), object.id().to_owned());
        self.changes.push(Change::Put(object.clone()));
        self.state.apply(Change::Put(object));
    }

    pub(crate) fn remove<T: Resource>(&mut self, id: &str) {
        self.note(T::KIND, id.to_owned());
        let change = Change::Remove(T::KIND, id.to_owned());
        self.changes.push(change.clone());
        self.state.apply(change);
    }

    fn note(&mut self, kind: Kind, id: String) {
        let before = self.state.tables.get(&kind).and_then(|table| {
            let row = *table.row_of.get(&id)?;
            Some((row, table.rows.get(&row)?.clone()))
        });
        self.undo.push(Undo { kind, id, before });
    }

    /// Takes every change back.
    pub(crate) fn roll_back(&mut self) {
        self.changes.clear();
        while let Some(Undo { kind, id, before }) = self.undo.pop() {
            let table = self.state.tables.entry(kind).or_default();
            match before {
                Some((row, object)) => {
                    table.row_of.insert(id, row);
                    table.rows.insert(row, object);
                }
                None => {
                    if let Some(row) = table.row_of.remove(&id) {
                        table.rows.remove(&row);
                    }
                }
            }
        }
    }

    pub(crate) fn changes(&self) -> &[Change] {
        &self.changes
    }
}
