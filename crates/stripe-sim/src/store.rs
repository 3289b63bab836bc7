//! The state with its ids and journal. One transaction is one journal line.

use std::io;
use std::path::Path;

use crate::error::Error;
use crate::ids::Ids;
use crate::journal::Journal;
use crate::objects;
use crate::state::{Change, Settings, State, StoredAnswer};
use crate::tx::{Cause, Tx};

pub(crate) struct Store {
    pub(crate) state: State,
    ids: Ids,
    journal: Option<Journal>,
}

/// What a transaction leaves behind.
pub(crate) enum Ending {
    /// Its changes, and the answer to keep for an idempotency key, if any.
    Commit(Option<StoredAnswer>),
    /// No change, but perhaps an answer to keep.
    RollBack(Option<StoredAnswer>),
}

impl Store {
    pub(crate) fn open(path: Option<&Path>, ids: Ids) -> Result<Self, Error> {
        let mut state = State::default();
        let journal = path.map(|path| Journal::open(path, &mut state)).transpose()?;
        Ok(Self { state, ids, journal })
    }

    pub(crate) fn new_id(&mut self, prefix: &str) -> String {
        self.ids.next(prefix)
    }

    /// Runs `work`; what it changed and the answer to keep become durable together or not at all.
    ///
    /// # Errors
    /// When the journal cannot be written. Nothing has changed then.
    pub(crate) fn transact<T>(
        &mut self,
        now: i64,
        request: Option<&Cause>,
        work: impl FnOnce(&mut Tx<'_>) -> (T, Ending),
    ) -> io::Result<T> {
        let mut tx = Tx::begin(&mut self.state, &mut self.ids, now, request);
        let (result, ending) = work(&mut tx);
        let answer = match ending {
            Ending::Commit(answer) => answer,
            Ending::RollBack(answer) => {
                tx.roll_back();
                answer
            }
        };
        if let Some(journal) = &mut self.journal {
            let mut line = tx.changes().to_vec();
            line.extend(answer.clone().map(Change::Remember));
            if !line.is_empty()
                && let Err(error) = journal.append(&line)
            {
                tx.roll_back();
                return Err(error);
            }
        }
        if let Some(answer) = answer {
            self.state.apply(Change::Remember(answer));
        }
        Ok(result)
    }

    /// Lets happen what is due until `now`, each thing at its own time, in the order of the times.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(crate) fn catch_up(&mut self, now: i64) -> io::Result<()> {
        while let Some((at, object)) = self.state.first_due(None, now) {
            self.transact(at, None, |tx| {
                objects::fall_due(tx, object);
                ((), Ending::Commit(None))
            })?;
        }
        Ok(())
    }

    /// Moves the clock ahead.
    pub(crate) fn advance_clock(&mut self, seconds: i64) -> io::Result<()> {
        self.change(Change::AdvanceClock(seconds))
    }

    pub(crate) fn configure(&mut self, settings: Settings) -> io::Result<()> {
        self.change(Change::Configure(settings))
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.append(std::slice::from_ref(&change))?;
        }
        self.state.apply(change);
        Ok(())
    }
}
