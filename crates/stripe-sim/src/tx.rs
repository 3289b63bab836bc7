//! Transactions over the state: what a request, or something that falls due, reads and changes.

use crate::ids::Ids;
use crate::objects::test_clocks::TestClock;
use crate::objects::{Kind, Object, Resource};
use crate::state::{Change, State};

/// Changes that are seen at once, and taken back unless they are committed.
pub(crate) struct Tx<'a> {
    state: &'a mut State,
    ids: &'a mut Ids,
    /// The time of all objects that go by no test clock.
    common_time: i64,
    now: i64,
    request: Option<&'a Cause>,
    changes: Vec<Change>,
    undo: Vec<Undo>,
}

/// The request that a transaction executes.
pub(crate) struct Cause {
    pub(crate) request_id: String,
    pub(crate) idempotency_key: Option<String>,
    /// Under which name the caller reached the stand-in.
    pub(crate) host: Option<String>,
}

/// A row as it was, at its place in the order.
struct Undo {
    kind: Kind,
    row: u64,
    before: Option<Object>,
}

impl<'a> Tx<'a> {
    pub(crate) fn begin(
        state: &'a mut State,
        ids: &'a mut Ids,
        now: i64,
        request: Option<&'a Cause>,
    ) -> Self {
        Self { state, ids, common_time: now, now, request, changes: Vec::new(), undo: Vec::new() }
    }

    /// The time, by the test clock the transaction goes by if there is one.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// The time by the clock of all.
    pub(crate) fn common_time(&self) -> i64 {
        self.common_time
    }

    /// From now on the time is the one of that test clock.
    pub(crate) fn go_by(&mut self, clock: Option<&str>) {
        self.now = self.time_by(clock);
    }

    /// The time by a test clock, or by the clock of all.
    pub(crate) fn time_by(&self, clock: Option<&str>) -> i64 {
        let frozen = clock.and_then(|id| self.state.get::<TestClock>(id)).map(|clock| clock.frozen_time);
        frozen.unwrap_or(self.common_time)
    }

    /// From now on the time is `now`, whatever a clock says.
    pub(crate) fn set_now(&mut self, now: i64) {
        self.now = now;
    }

    pub(crate) fn request(&self) -> Option<&'a Cause> {
        self.request
    }

    pub(crate) fn state(&self) -> &State {
        self.state
    }

    pub(crate) fn ids(&mut self) -> &mut Ids {
        self.ids
    }

    pub(crate) fn put(&mut self, resource: impl Resource) {
        let object: Object = resource.into();
        let kind = object.kind();
        let id = object.id().to_owned();
        let before = self.state.object(kind, &id).cloned();
        let change = Change::Put(Box::new(object));
        self.changes.push(change.clone());
        self.state.apply(change);
        if let Some(row) = self.state.row(kind, &id) {
            self.undo.push(Undo { kind, row, before });
        }
    }

    pub(crate) fn remove<T: Resource>(&mut self, id: &str) {
        let Some(row) = self.state.row(T::KIND, id) else { return };
        let before = self.state.object_at(T::KIND, row).cloned();
        self.undo.push(Undo { kind: T::KIND, row, before });
        let change = Change::Remove(T::KIND, id.to_owned());
        self.changes.push(change.clone());
        self.state.apply(change);
    }

    /// Takes every change back.
    pub(crate) fn roll_back(&mut self) {
        self.changes.clear();
        while let Some(Undo { kind, row, before }) = self.undo.pop() {
            self.state.set(kind, row, before);
        }
    }

    pub(crate) fn changes(&self) -> &[Change] {
        &self.changes
    }
}
