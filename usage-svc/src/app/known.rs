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
            // Changes may have been missed; it is said whenever the database is reached anew, between two outages even.
            // Whoever was there is there, if closed meanwhile: that the drain finds out.
            Change::Everything => {}
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

#[cfg(test)]
mod tests {
    use nexus_core::period::MAX_EVENT_AGE;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        event::Payload,
        judge::{Account, Key},
    };

    fn event(account: &str, key: Option<&str>, at: DateTime<Utc>) -> Event {
        Event {
            event_id: Uuid::from_u128(1),
            eco_id: EcoId::parse(account).expect("an id"),
            accepted: None,
            payload: Payload {
                event_time: at,
                endpoint: "/".to_owned(),
                method: "GET".to_owned(),
                status_code: 200,
                response_time_ms: 0,
                units_count: 1,
                api_key_id: key.map(str::to_owned),
                admission: None,
            },
        }
    }

    fn facts(closed: Option<DateTime<Utc>>) -> Facts {
        let now = DateTime::from_timestamp_secs(1_800_000_000).expect("a time");
        let account = Account { anchor: now, closed, former: Vec::new(), closed_segments: Vec::new() };
        let key = Key { eco_id: "eco_a".to_owned(), test_mode: false };
        Facts {
            now,
            accounts: [(EcoId::parse("eco_a").expect("an id"), account)].into(),
            keys: [("key".to_owned(), key)].into(),
        }
    }

    #[test]
    fn what_the_database_said_is_known_and_nothing_else() {
        let (known, facts) = (Known::default(), facts(None));
        assert!(known.judge(&event("eco_a", None, facts.now)).is_none(), "it never answered");
        known.learn(known.before(), &facts);
        for (account, key, is_known) in [
            ("eco_a", None, true),
            ("eco_a", Some("key"), true),
            ("eco_a", Some("other"), false),
            ("eco_b", None, false),
            ("eco_b", Some("key"), false),
        ] {
            let accepted = known.judge(&event(account, key, facts.now));
            assert_eq!(accepted.is_some(), is_known, "{account} {key:?}");
            assert!(accepted.is_none_or(|accepted| accepted.is_ok_and(|at| at >= facts.now)));
        }
        let old = known.judge(&event("eco_a", None, facts.now - MAX_EVENT_AGE * 2));
        assert_eq!(old, Some(Err(Refusal::TooOld)));
    }

    #[test]
    fn what_changed_or_is_closed_is_not_known() {
        let (known, open) = (Known::default(), facts(None));
        let (account, key) = (event("eco_a", None, open.now), event("eco_a", Some("key"), open.now));
        let id = || EcoId::parse("eco_a").expect("an id");
        known.learn(known.before(), &open);
        assert!(known.judge(&account).is_some());
        let before = known.before();
        known.forget(&Change::Account(id()));
        assert!(known.judge(&account).is_none());
        // Read before it was heard.
        known.learn(before, &open);
        assert!(known.judge(&account).is_none());
        known.learn(known.before(), &open);
        known.forget(&Change::Everything);
        assert!(known.judge(&account).is_some(), "a new connection to the database is no news of accounts");
        known.forget(&Change::Key("key".to_owned()));
        assert!(known.judge(&key).is_none() && known.judge(&account).is_some());
        known.learn(known.before(), &facts(Some(open.now)));
        assert!(known.judge(&account).is_none());
    }
}
