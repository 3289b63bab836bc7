//! Whom not to ask for a moment, so that an outage does not slow every call down.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long nobody asks again.
const REST: Duration = Duration::from_secs(1);
/// After so many accounts in turn without an answer there is nobody who answers.
const UNANSWERED: usize = 4;
/// Accounts that are remembered at most.
const MAX_ACCOUNTS: usize = 4_096;

/// Why a check has no decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no connection to usage-svc: no account need ask.
    Unreachable,
    /// No answer came in time: of usage-svc, or for this account.
    Late,
    /// usage-svc answered that it cannot tell, of this account: of another it may.
    Told,
}

/// What rests. An account whose check failed says nothing of another's: with the database away usage-svc still
/// decides by plan, and what holds up one account holds up no other.
#[derive(Debug, Default)]
pub(super) struct Rests(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    everybody: Option<Instant>,
    accounts: HashMap<String, Instant>,
    /// Accounts whose checks had no answer since the last answer.
    unanswered: usize,
}

impl Rests {
    /// Whether this account's check would fail now, most likely.
    pub(super) fn rests(&self, eco_id: &str, now: Instant) -> bool {
        let state = self.state();
        let rests = |until: &Instant| now < *until;
        state.everybody.as_ref().is_some_and(rests) || state.accounts.get(eco_id).is_some_and(rests)
    }

    /// usage-svc has decided.
    pub(super) fn decided(&self) {
        self.state().unanswered = 0;
    }

    /// It has not, for this account.
    pub(super) fn failed(&self, eco_id: &str, trouble: Trouble, now: Instant) {
        let mut state = self.state();
        let until = now + REST;
        match trouble {
            Trouble::Unreachable => state.everybody = Some(until),
            Trouble::Told => {
                state.unanswered = 0;
                state.rest(eco_id, now, until);
            }
            Trouble::Late => {
                // Of checks of one account at once, the first counts.
                state.unanswered += usize::from(state.rest(eco_id, now, until));
                if state.unanswered >= UNANSWERED {
                    state.everybody = Some(until);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Has an account rest, where there is room to remember it; whether it did not before.
    fn rest(&mut self, eco_id: &str, now: Instant, until: Instant) -> bool {
        if self.accounts.len() >= MAX_ACCOUNTS {
            self.accounts.retain(|_, until| now < *until);
        }
        if self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(eco_id) {
            return true;
        }
        let before = self.accounts.insert(eco_id.to_owned(), until);
        before.is_none_or(|before| before <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_accounts_trouble_is_nobody_elses() {
        let (rests, now) = (Rests::default(), Instant::now());
        for _ in 0..3 * UNANSWERED {
            rests.failed("free", Trouble::Told, now);
            rests.failed("locked", Trouble::Late, now);
        }
        assert!(rests.rests("free", now) && rests.rests("locked", now));
        assert!(!rests.rests("pro", now));
        assert!(!rests.rests("free", now + REST));
    }

    #[test]
    fn nobody_asks_whom_nobody_reaches() {
        let (rests, now) = (Rests::default(), Instant::now());
        rests.failed("a", Trouble::Unreachable, now);
        assert!(rests.rests("b", now));
        assert!(!rests.rests("b", now + REST));
    }

    #[test]
    fn nor_who_answers_nobody() {
        let (rests, now) = (Rests::default(), Instant::now());
        let late = |eco_id: &str| rests.failed(eco_id, Trouble::Late, now);
        ["a", "b", "c"].into_iter().for_each(late);
        rests.decided();
        ["d", "e", "f"].into_iter().for_each(late);
        assert!(!rests.rests("g", now), "it answered in between");
        late("h");
        assert!(rests.rests("g", now));
    }

    #[test]
    fn accounts_are_remembered_within_bounds() {
        let (rests, now) = (Rests::default(), Instant::now());
        let told = |from: usize, now| {
            for account in from..from + MAX_ACCOUNTS + 10 {
                rests.failed(&account.to_string(), Trouble::Told, now);
            }
        };
        told(0, now);
        assert_eq!(rests.state().accounts.len(), MAX_ACCOUNTS);
        told(1_000_000, now + REST);
        assert!(rests.rests("1000000", now + REST));
        assert_eq!(rests.state().accounts.len(), MAX_ACCOUNTS);
    }
}
