//! What the database said about accounts and keys when it was last asked, for the time that it is away. Only what
//! exists and is open is remembered: of everything else nothing can be said then.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use nexus_core::id::EcoId;
use tokio_util::sync::CancellationToken;

use super::feed::{Change, Changes};
use crate::{
    clock::DatabaseClock,
    domain::{
        event::Event,
        judge::{Facts, Refusal, judge_age},
    },
};

/// Accounts, and keys, that are remembered at most; those that are busy stay.
const MAX_REMEMBERED: u64 = 100_000;

/// What is known.
#[derive(Debug)]
pub struct Known {
    accounts: Cache<EcoId, ()>,
    /// The account of a key.
    keys: Cache<String, String>,
    clock: DatabaseClock,
    /// Counts the changes heard: what was read before one of them may not be true after it.
    changes: AtomicU64,
}

/// How many changes had been heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before(u64);

impl Default for Known {
    fn default() -> Self {
        Self {
            accounts: Cache::new(MAX_REMEMBERED),
            keys: Cache::new(MAX_REMEMBERED),
            clock: DatabaseClock::default(),
            changes: AtomicU64::new(0),
        }
    }
}

impl Known {
    /// To be asked for before the facts are.
    pub fn before(&self) -> Before {
        Before(self.changes.load(Ordering::Acquire))
    }

    /// Remembers facts, unless they changed since.
    pub fn learn(&self, before: Before, facts: &Facts) {
        self.clock.set(facts.now);
        for (id, account) in &facts.accounts {
            if account.closed.is_some() {
                self.accounts.invalidate(id);
            } else if self.accounts.get(id).is_none() {
                self.accounts.insert(id.clone(), ());
            }
        }
        for (id, key) in &facts.keys {
            if self.keys.get(id).is_none() {
                self.keys.insert(id.clone(), key.eco_id.clone());
            }
        }
        // A change counts itself before it forgets: of the two, one sees the other.
        if self.before() != before {
            facts.accounts.keys().for_each(|id| self.accounts.invalidate(id));
            facts.keys.keys().for_each(|id| self.keys.invalidate(id));
        }
    }

    /// Whether the database was heard at all.
    pub fn is_anything(&self) -> bool {
        self.clock.now().is_some()
    }

    /// When the event is accepted, by the database's clock, or why it is refused for certain; `None`: only the
    /// database can tell.
    pub fn judge(&self, event: &Event) -> Option<Result<DateTime<Utc>, Refusal>> {
        let now = self.clock.now()?;
        self.accounts.get(&event.eco_id)?;
        if let Some(id) = &event.payload.api_key_id
            && self.keys.get(id).is_none_or(|owner| owner != event.eco_id.as_str())
        {
            return None;
        }
        Some(judge_age(event.payload.event_time, now).map(|()| now))
    }

    fn forget(&self, change: &Change) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        match change {
            Change::Account(id) => self.accounts.invalidate(id),
            Change::Key(id) => self.keys.invalidate(id),
            Change::Everything => {
                self.accounts.invalidate_all();
                self.keys.invalidate_all();
            }
            Change::Plans | Change::Recall(_) | Change::Returned(_) => {}
        }
    }
}

/// Follows the changes until `stop`.
pub async fn follow(known: Arc<Known>, mut changes: Changes, stop: CancellationToken) {
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        known.forget(&change);
    }
}
