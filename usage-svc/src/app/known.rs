//! What the database said about accounts and keys when it was last asked, for the time that it is away. Only what
//! exists and is open is remembered: of everything else nothing can be said then.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use nexus_core::{id::EcoId, period::Period};

use super::feed::Change;
use crate::{
    clock::DatabaseClock,
    domain::{
        event::Event,
        judge::{Account, Facts, Refusal, judge_age},
        quota::{Outlook, Standing, Terms},
    },
};

/// Accounts, and keys, that are remembered at most; those that are busy stay.
const MAX_REMEMBERED: u64 = 100_000;
/// Changes that are remembered, to tell what is true of facts that were read before them.
const MAX_CHANGES: usize = 4_096;

/// What is known.
#[derive(Debug)]
pub struct Known {
    accounts: Cache<EcoId, KnownAccount>,
    /// The account of a key.
    keys: Cache<String, String>,
    clock: DatabaseClock,
    heard: Mutex<Heard>,
}

/// An account that is there and open.
#[derive(Debug, Clone, Copy)]
struct KnownAccount {
    outlook: Outlook,
    anchor: DateTime<Utc>,
    /// Of its terms: with an older one they are asked for again, and hold until they were.
    edition: u64,
}

/// The changes of accounts and keys that were heard. What was read before a change may not be true after it.
#[derive(Debug, Default)]
struct Heard {
    count: u64,
    /// The last of them.
    last: VecDeque<Change>,
    /// Counts the times at which the terms of all accounts may have changed.
    edition: u64,
}

/// Which changes had been heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    count: u64,
    edition: u64,
}

impl Heard {
    fn note(&mut self, change: Change) {
        self.count += 1;
        self.last.truncate(MAX_CHANGES - 1);
        self.last.push_front(change);
    }

    /// The changes since; `None`: there were too many to tell.
    fn since(&self, before: Before) -> Option<HashSet<&Change>> {
        let count = usize::try_from(self.count - before.count).ok()?;
        (count <= self.last.len()).then(|| self.last.iter().take(count).collect())
    }
}

impl Default for Known {
    fn default() -> Self {
        Self {
            accounts: Cache::new(MAX_REMEMBERED),
            keys: Cache::new(MAX_REMEMBERED),
            clock: DatabaseClock::default(),
            heard: Mutex::default(),
        }
    }
}

impl Known {
    /// To be asked for before the facts are.
    pub fn before(&self) -> Before {
        let heard = self.heard();
        Before { count: heard.count, edition: heard.edition }
    }

    /// Of these accounts, those whose terms are to be asked for.
    pub fn wanting<'a>(&self, before: Before, accounts: impl IntoIterator<Item = &'a EcoId>) -> Vec<&'a str> {
        let is_wanting = |id: &&EcoId| self.accounts.get(*id).is_none_or(|a| a.edition < before.edition);
        accounts.into_iter().filter(is_wanting).map(EcoId::as_str).collect()
    }

    /// The accounts whose terms are to be asked for.
    pub fn doubtful(&self) -> Vec<EcoId> {
        let edition = self.before().edition;
        let doubtful = self.accounts.iter().filter(|(_, account)| account.edition < edition);
        doubtful.map(|(id, _)| EcoId::clone(&id)).collect()
    }

    /// Remembers facts, but those that changed since.
    pub fn learn(&self, before: Before, facts: &Facts) {
        self.clock.set(facts.now);
        // No change is heard meanwhile: it would be forgotten first and remembered then.
        let heard = self.heard();
        let Some(changed) = heard.since(before) else { return };
        for (id, account) in &facts.accounts {
            if account.closed.is_some() {
                self.accounts.invalidate(id);
            } else if let Some(outlook) = facts.terms.get(id)
                && (changed.is_empty() || !changed.contains(&Change::Account(id.clone())))
            {
                let (outlook, anchor) = (*outlook, account.anchor);
                self.accounts.insert(id.clone(), KnownAccount { outlook, anchor, edition: before.edition });
            }
        }
        for (id, key) in &facts.keys {
            if self.keys.get(id).is_none()
                && (changed.is_empty() || !changed.contains(&Change::Key(id.clone())))
            {
                self.keys.insert(id.clone(), key.eco_id.clone());
            }
        }
    }

    /// Remembers where an account stands, unless it changed since.
    pub fn learn_standing(&self, before: Before, eco_id: &EcoId, standing: &Standing) {
        let account = Account {
            anchor: standing.anchor,
            closed: None,
            former: Vec::new(),
            closed_segments: Vec::new(),
        };
        let mut facts = Facts { now: standing.now, ..Facts::default() };
        if standing.closed {
            self.accounts.invalidate(eco_id);
        } else {
            facts.accounts.insert(eco_id.clone(), account);
            facts.terms.insert(eco_id.clone(), Outlook { terms: standing.terms, next: standing.next });
        }
        self.learn(before, &facts);
    }

    /// The terms of an account, as far as they are known, and its period by the database's clock, with that.
    pub fn terms(&self, eco_id: &EcoId) -> Option<(Terms, Period, DateTime<Utc>)> {
        let now = self.clock.now()?;
        let KnownAccount { outlook, anchor, .. } = self.accounts.get(eco_id)?;
        Some((outlook.at(now), Period::containing(anchor, now.max(anchor)), now))
    }

    /// Whether anything is known of an account.
    pub fn knows(&self, eco_id: &EcoId) -> bool {
        self.accounts.contains_key(eco_id)
    }

    /// The database's clock; `None`: it never answered.
    pub fn now(&self) -> Option<DateTime<Utc>> {
        self.clock.now()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Forgets what changed. Where plans did, or changes may have been missed, accounts are asked about again, and hold
    /// until they were: that is said whenever the database is reached anew, between two outages even. Whoever was there
    /// is there, if closed meanwhile: that the drain finds out. Units that go to and fro change nothing.
    pub fn forget(&self, change: Change) {
        let mut heard = self.heard();
        match &change {
            Change::Account(id) => self.accounts.invalidate(id),
            Change::Key(id) => self.keys.invalidate(id),
            Change::Everything | Change::Plans => {
                heard.edition += 1;
                return;
            }
            Change::Recall(_) | Change::Returned(_) => return,
        }
        heard.note(change);
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use nexus_core::{period::MAX_EVENT_AGE, plan::Plan};
    use uuid::Uuid;

    use super::*;
    use crate::domain::{event::Payload, judge::Key};

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

    const TERMS: Terms =
        Terms { plan: Plan::Pro, included: Some(5), hard: false, priced: true, capped: None, epoch: 1 };

    fn facts(closed: Option<DateTime<Utc>>) -> Facts {
        let now = DateTime::from_timestamp_secs(1_800_000_000).expect("a time");
        let account = Account { anchor: now, closed, former: Vec::new(), closed_segments: Vec::new() };
        let key = Key { eco_id: "eco_a".to_owned(), test_mode: false };
        Facts {
            now,
            accounts: [(EcoId::parse("eco_a").expect("an id"), account)].into(),
            terms: [(EcoId::parse("eco_a").expect("an id"), Outlook { terms: TERMS, next: None })].into(),
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
        known.forget(Change::Account(id()));
        assert!(known.judge(&account).is_none());
        // Read before it was heard.
        known.learn(before, &open);
        assert!(known.judge(&account).is_none());
        known.learn(known.before(), &open);
        known.forget(Change::Everything);
        assert!(known.judge(&account).is_some(), "a new connection to the database is no news of accounts");
        known.forget(Change::Key("key".to_owned()));
        assert!(known.judge(&key).is_none() && known.judge(&account).is_some());
        known.learn(known.before(), &facts(Some(open.now)));
        assert!(known.judge(&account).is_none());
    }

    #[test]
    fn facts_that_were_read_before_a_change_of_others_are_remembered() {
        let of_another = || EcoId::parse("eco_b").expect("an id");
        let facts = facts(None);
        for change in [
            Change::Everything,
            Change::Plans,
            Change::Recall(EcoId::parse("eco_a").expect("an id")),
            Change::Returned(EcoId::parse("eco_a").expect("an id")),
            Change::Account(of_another()),
            Change::Key("another".to_owned()),
        ] {
            let known = Known::default();
            let before = known.before();
            known.forget(change.clone());
            known.learn(before, &facts);
            let event = event("eco_a", Some("key"), facts.now);
            assert!(known.judge(&event).is_some(), "{change:?}");
        }
    }

    #[test]
    fn of_more_changes_than_are_remembered_nothing_is_said() {
        let (known, facts) = (Known::default(), facts(None));
        let before = known.before();
        known.forget(Change::Account(EcoId::parse("eco_a").expect("an id")));
        for i in 0..MAX_CHANGES {
            known.forget(Change::Key(format!("key_{i}")));
        }
        known.learn(before, &facts);
        assert!(known.judge(&event("eco_a", None, facts.now)).is_none());
        known.learn(known.before(), &facts);
        assert!(known.judge(&event("eco_a", None, facts.now)).is_some());
    }

    #[test]
    fn a_change_of_plan_that_waits_is_in_force_at_its_time() {
        let (known, mut facts) = (Known::default(), facts(None));
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let free = Terms { plan: Plan::Free, hard: true, priced: false, ..TERMS };
        for (ahead, plan) in [(TimeDelta::hours(1), Plan::Pro), (TimeDelta::zero(), Plan::Free)] {
            let next = Some((facts.now + ahead, free));
            facts.terms.insert(eco_id.clone(), Outlook { terms: TERMS, next });
            known.learn(known.before(), &facts);
            assert_eq!(known.terms(&eco_id).map(|(terms, ..)| terms.plan), Some(plan), "{ahead}");
        }
    }

    #[test]
    fn terms_hold_until_they_are_asked_for_again() {
        let (known, mut facts) = (Known::default(), facts(None));
        let eco_id = EcoId::parse("eco_a").expect("an id");
        let wanting = || known.wanting(known.before(), [&eco_id]).len();
        assert_eq!(wanting(), 1);
        known.learn(known.before(), &facts);
        for change in [Change::Everything, Change::Plans] {
            assert_eq!(wanting(), 0);
            let before = known.before();
            known.forget(change);
            assert_eq!(wanting(), 1);
            assert_eq!(known.terms(&eco_id).map(|known| known.0), Some(TERMS));
            known.learn(before, &facts);
            assert_eq!(wanting(), 1, "they were read before");
            facts.terms.insert(eco_id.clone(), Outlook { terms: TERMS, next: None });
            known.learn(known.before(), &facts);
        }
        known.forget(Change::Account(eco_id.clone()));
        assert_eq!(known.terms(&eco_id), None);
    }
}
