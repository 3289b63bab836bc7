//! Counts what is in the spool when the database is back: journal by journal, in order, in the transaction of any
//! other flush. Events that need a day or a plan that is locked come last: it waits in turn for the lock. How far a
//! journal is drained is committed with the rows, so that an event is counted once, whatever happens before its file is
//! removed. What cannot be counted goes into quarantine.

use std::{collections::BTreeMap, mem, time::Duration};

use chrono::NaiveDate;
use nexus_kit::db;
use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    drained::Drained,
    flush::{self, FlushError, Memory},
    locked::{Flushed, Lock, Locked, Wait},
    spooling::Spooling,
};
use crate::{
    domain::{
        cursor::Cursor,
        event::{Event, Outcome},
        quarantine::{Quarantined, Reason},
    },
    spool::{Drainable, SpoolError},
    store,
};

/// Events of a flush at most.
const BATCH: usize = 10_000;
/// Pause before the database is tried again.
const AWAY: Duration = Duration::from_millis(500);
/// Pause after a failure that a human has to end.
const FAILED: Duration = Duration::from_secs(10);
/// Longest time the database may take to say where it is.
const BOUND: Duration = Duration::from_secs(5);

/// Why draining stopped.
#[derive(Debug, thiserror::Error)]
enum DrainError {
    #[error("the database is away: {0}")]
    Away(sqlx::Error),
    #[error(transparent)]
    Database(sqlx::Error),
    #[error(transparent)]
    Flush(#[from] FlushError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl From<sqlx::Error> for DrainError {
    fn from(error: sqlx::Error) -> Self {
        if db::is_unavailable(&error) { Self::Away(error) } else { Self::Database(error) }
    }
}

/// The drain of a spool.
pub struct Drain {
    spooling: Spooling,
    pool: PgPool,
    bound: Duration,
    memory: Memory,
    stop: CancellationToken,
}

/// What is left of a journal, in order: events that were missing when others beyond were drained come first.
struct Rest<'a> {
    /// Those with this number and beyond are not drained.
    from: i64,
    events: Vec<(i64, &'a Event)>,
    /// Those that are left out for now, by a lock that they lacked.
    locked: BTreeMap<Lock, Vec<(i64, &'a Event)>>,
    /// Left out until the journal is read again: their locks were not had in time.
    given_up: usize,
}

impl Drain {
    /// Of this spool, by a connection of the pool; `bound` is the longest time of one try of a flush.
    pub fn new(spooling: Spooling, pool: PgPool, bound: Duration, stop: CancellationToken) -> Self {
        let memory = Memory::new(spooling.known().clone());
        Self { spooling, pool, bound, memory, stop }
    }

    /// Runs until it is stopped, which it is between two batches.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        while stop.run_until_cancelled(self.spooling.work()).await.is_some() {
            while let Err(error) = self.all().await {
                if let DrainError::Spool(_) = &error {
                    // The database was reached before the spool was asked for anything: whatever became of that
                    // keeps nobody from writing there.
                    self.spooling.note_back();
                }
                let pause = match &error {
                    DrainError::Away(_) | DrainError::Flush(FlushError::Unavailable | FlushError::Busy) => {
                        tracing::debug!(%error, "the spool is not drained yet");
                        AWAY
                    }
                    _ => {
                        tracing::error!(%error, "the spool cannot be drained");
                        FAILED
                    }
                };
                self.spooling.ask_for_room().await;
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
            self.spooling.ask_for_room().await;
        }
    }

    /// Drains until nothing is left.
    async fn all(&mut self) -> Result<(), DrainError> {
        while !self.stop.is_cancelled() {
            // Before a journal is closed for it: in a long outage there would be one at every try.
            self.reach().await?;
            let Some(oldest) = self.spooling.oldest().await? else {
                self.spooling.note_back();
                return Ok(());
            };
            if self.journal(&oldest).await? {
                self.spooling.discard(oldest).await?;
            }
        }
        Ok(())
    }

    async fn reach(&self) -> sqlx::Result<()> {
        db::acquire(&self.pool).await.map(drop)
    }

    /// Drains a journal; whether to its end.
    async fn journal(&mut self, journal: &Drainable) -> Result<bool, DrainError> {
        let (cursor, retained_from) = self.position(journal).await?;
        let numbered =
            journal.events.iter().map(|(number, event)| (i64::try_from(*number).unwrap_or(i64::MAX), event));
        let events = numbered.filter(|(number, _)| !cursor.is_past(*number)).collect();
        let mut rest = Rest { from: cursor.next, events, locked: BTreeMap::new(), given_up: 0 };
        let (mut size, mut wait) = (BATCH, Wait::Long);
        loop {
            if rest.events.is_empty() {
                let Some((lock, events)) = rest.locked.pop_first() else { break };
                wait = Wait::InTurn(lock);
                rest.events = events;
                // It answers; who came later need not wait for what this one waits for.
                self.spooling.note_back();
            }
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let done = size.min(rest.events.len());
            match self.batch(journal, &rest, done, wait, |event| unfit(event, retained_from)).await {
                Ok(Some(locked)) => {
                    rest.leave_out(done, &locked);
                    continue;
                }
                Ok(None) => size = (size * 2).min(BATCH),
                Err(FlushError::Busy) if wait != Wait::Long => {
                    rest.give_up();
                    continue;
                }
                Err(FlushError::Rejected) if done > 1 => {
                    // Which one it is, is found by halves.
                    size = done / 2;
                    continue;
                }
                Err(FlushError::Rejected) => {
                    self.batch(journal, &rest, done, Wait::Long, |_| Some(Reason::Rejected)).await?;
                }
                Err(error) => {
                    if error == FlushError::Busy {
                        self.spooling.note_back();
                    }
                    return Err(error.into());
                }
            }
            rest.advance(done);
            self.spooling.note_back();
            self.spooling.note_left(journal, rest.len()).await;
        }
        if rest.given_up > 0 { Err(FlushError::Busy.into()) } else { Ok(true) }
    }

    /// Where the journal's cursor is, and the first day of the raw log.
    async fn position(&self, journal: &Drainable) -> sqlx::Result<(Cursor, NaiveDate)> {
        let mut connection = db::acquire(&self.pool).await?;
        let read = timeout(BOUND, async {
            let position = store::spool_cursors::position(&mut connection, journal.id).await?;
            Ok((position, store::api_usage::retained_from(&mut connection).await?))
        });
        db::in_time(read.await, connection)
    }

    /// Counts the first so many events of the rest but those that are unfit, or says what of them is locked.
    async fn batch(
        &mut self,
        journal: &Drainable,
        rest: &Rest<'_>,
        size: usize,
        wait: Wait,
        unfit: impl Fn(&Event) -> Option<Reason>,
    ) -> Result<Option<Locked>, FlushError> {
        let (mut numbers, mut events, mut quarantined) = (Vec::new(), Vec::new(), Vec::new());
        for (number, event) in &rest.events[..size] {
            match unfit(event) {
                None => {
                    numbers.push(*number);
                    events.push(*event);
                }
                Some(reason) => quarantined.push(Quarantined { number: *number, event, reason }),
            }
        }
        let to = rest.behind(size);
        let drained =
            Drained { journal: journal.id, from: rest.from, to, numbers: &numbers, unfit: &quarantined };
        let memory = &mut self.memory;
        match flush::run(&self.pool, self.bound, memory, wait, &events, Some(&drained)).await? {
            Flushed::Counted(outcomes) => self.tell(&drained, &events, &outcomes),
            Flushed::Locked(locked) => return Ok(Some(locked)),
        }
        Ok(None)
    }

    fn tell(&self, drained: &Drained<'_>, events: &[&Event], outcomes: &[Outcome]) {
        let quarantined = drained.quarantined(events, outcomes);
        let metrics = self.spooling.metrics();
        let all = events.len() + drained.unfit.len();
        metrics.drained.inc_by((all - quarantined.len()) as u64);
        metrics.quarantined.inc_by(quarantined.len() as u64);
        if let Some(first) = quarantined.first() {
            let (journal, number, reason) = (drained.journal, first.number, first.reason.as_str());
            tracing::error!(events = quarantined.len(), %journal, first = number, reason, "acknowledged events cannot be counted and are in eco_usage_quarantine");
        }
    }
}

impl Rest<'_> {
    /// Where the cursor is once so many are drained.
    fn behind(&self, count: usize) -> i64 {
        self.events[..count].last().map_or(self.from, |(last, _)| self.from.max(last + 1))
    }

    fn advance(&mut self, count: usize) {
        self.from = self.behind(count);
        self.events.drain(..count);
    }

    /// Leaves out what is locked of the first so many: as if the file did not give it, until it is counted.
    fn leave_out(&mut self, count: usize, locked: &Locked) {
        let beyond = self.events.split_off(count);
        for numbered in mem::take(&mut self.events) {
            match locked.lacks(numbered.1) {
                Some(lock) => self.locked.entry(lock).or_default().push(numbered),
                None => self.events.push(numbered),
            }
        }
        self.events.extend(beyond);
    }

    /// Leaves out those at hand.
    fn give_up(&mut self) {
        self.given_up += mem::take(&mut self.events).len();
    }

    /// How many are not drained.
    fn len(&self) -> usize {
        self.events.len() + self.locked.values().map(Vec::len).sum::<usize>() + self.given_up
    }
}

/// Of a day whose raw log is not whole, what was recorded cannot be told any more.
fn unfit(event: &Event, retained_from: NaiveDate) -> Option<Reason> {
    (event.day() < retained_from).then_some(Reason::DayNotRetained)
}
