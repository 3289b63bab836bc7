//! What is committed with the rows of events that are drained: how far their journal is, and those of them that
//! could not be counted.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    domain::{
        event::{Event, Outcome},
        quarantine::{Quarantined, Reason},
    },
    store,
};

/// A batch of a journal.
#[derive(Debug)]
pub struct Drained<'a> {
    /// The journal.
    pub journal: Uuid,
    /// Where its cursor is.
    pub from: i64,
    /// Where it will be.
    pub to: i64,
    /// Numbers of the events to be counted, in their order.
    pub numbers: &'a [i64],
    /// Those that are not to be.
    pub unfit: &'a [Quarantined<'a>],
}

impl<'a> Drained<'a> {
    /// All that is quarantined, now that the others have their outcomes.
    pub(super) fn quarantined(&self, events: &[&'a Event], outcomes: &[Outcome]) -> Vec<Quarantined<'a>> {
        let judged = self.numbers.iter().zip(events).zip(outcomes);
        let refused = judged.filter_map(|((number, event), outcome)| {
            let reason = Reason::of(*outcome)?;
            Some(Quarantined { number: *number, event, reason })
        });
        self.unfit.iter().copied().chain(refused).collect()
    }

    /// Writes it.
    pub(super) async fn settle(
        &self,
        connection: &mut PgConnection,
        events: &[&'a Event],
        outcomes: &[Outcome],
    ) -> sqlx::Result<()> {
        store::usage_quarantine::insert(connection, self.journal, &self.quarantined(events, outcomes))
            .await?;
        let unfit = self.unfit.iter().map(|event| event.number);
        let numbers: Vec<i64> = self.numbers.iter().copied().chain(unfit).collect();
        store::spool_cursors::advance(connection, self.journal, (self.from, self.to), &numbers).await
    }
}
