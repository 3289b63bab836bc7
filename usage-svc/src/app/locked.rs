//! What a flush finds locked, which it does not wait for, and how long it waits for rows that somebody holds.

use std::collections::HashSet;

use chrono::NaiveDate;

use crate::domain::event::{Event, Outcome};

/// How long a flush waits for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// As long as the connection lets it.
    Long,
    /// Hardly: a group that has it was waited for already.
    Briefly,
}

/// What others hold, for as long as a rebuild or a change of plan takes.
#[derive(Debug, Default)]
pub struct Locked {
    pub(super) days: HashSet<NaiveDate>,
    pub(super) accounts: HashSet<String>,
}

impl Locked {
    /// Whether the event needs any of it.
    pub fn concerns(&self, event: &Event) -> bool {
        self.days.contains(&event.day()) || self.accounts.contains(event.eco_id.as_str())
    }
}

/// What a flush comes to.
#[derive(Debug)]
pub enum Flushed {
    /// It is committed: an outcome for each event.
    Counted(Vec<Outcome>),
    /// Others hold some of what it needs: nothing is counted.
    Locked(Locked),
}
