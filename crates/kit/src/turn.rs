//! Turns of accounts. A few calls of an account are at work at once; the others wait for their turn before they take
//! anything that others may lack, connections of the database above all: calls that wait for each other there, as for
//! the lock of one row, have a connection each, and a single customer would soon have all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_core::id::EcoId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An account has this part of the connections.
const PART: u32 = 4;
/// Calls of an account that wait at once.
const MAX_WAITING: usize = 256;

/// The turns of all accounts. Clones are the same.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    at_work: usize,
    waiting: usize,
    accounts: Mutex<HashMap<EcoId, Calls>>,
}

/// The calls of one account, while there are any.
#[derive(Debug)]
struct Calls {
    /// Those at work and those that wait.
    count: usize,
    free: Arc<Semaphore>,
}

/// A call's turn, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    // Free again before the call is counted no more: whoever comes then begins with all of them.
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

/// A call that is at work or waits, until this is dropped.
#[derive(Debug)]
struct Counted {
    turns: Turns,
    eco_id: EcoId,
}

impl Turns {
    /// For calls that take one of so many connections each: the callers that these are for have a quarter of them.
    pub fn of(connections: u32) -> Self {
        Self::new((connections / PART).max(1) as usize, MAX_WAITING)
    }

    /// As many for others.
    pub fn apart(&self) -> Self {
        Self::new(self.0.at_work, self.0.waiting)
    }

    /// So many calls of an account at work, while so many wait.
    pub fn new(at_work: usize, waiting: usize) -> Self {
        Self(Arc::new(Inner { at_work, waiting, accounts: Mutex::default() }))
    }

    /// Waits for a turn of the account, behind those that came before; `None`: as many wait as may.
    pub async fn take(&self, eco_id: &EcoId) -> Option<Turn> {
        let (counted, free) = self.enter(eco_id)?;
        // Nobody closes it.
        let permit = free.acquire_owned().await.ok()?;
        Some(Turn { _permit: permit, _counted: counted })
    }

    fn enter(&self, eco_id: &EcoId) -> Option<(Counted, Arc<Semaphore>)> {
        let Inner { at_work, waiting, .. } = *self.0;
        let mut accounts = self.accounts();
        let calls = accounts
            .entry(eco_id.clone())
            .or_insert_with(|| Calls { count: 0, free: Arc::new(Semaphore::new(at_work)) });
        if calls.count >= at_work + waiting {
            return None;
        }
        calls.count += 1;
        Some((Counted { turns: self.clone(), eco_id: eco_id.clone() }, calls.free.clone()))
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<EcoId, Calls>> {
        self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut accounts = self.turns.accounts();
        if let Some(calls) = accounts.get_mut(&self.eco_id) {
            calls.count -= 1;
            if calls.count == 0 {
                accounts.remove(&self.eco_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_few_calls_of_an_account_are_at_work_and_a_few_wait_in_order() {
        let turns = Turns::new(2, 2);
        let id = |text| EcoId::parse(text).expect("an id");
        let (a, b) = (id("eco_a"), id("eco_b"));
        let first = turns.take(&a).await.expect("its turn");
        let second = turns.take(&a).await.expect("its turn");
        let (mut third, mut fourth) = (Box::pin(turns.take(&a)), Box::pin(turns.take(&a)));
        assert!((&mut third).now_or_never().is_none() && (&mut fourth).now_or_never().is_none());
        assert!(turns.take(&a).await.is_none(), "as many wait as may");
        assert!(turns.take(&b).await.is_some(), "another account has its own");
        drop(first);
        assert!((&mut fourth).now_or_never().is_none(), "it came later");
        let third = third.await.expect("its turn");
        // Who goes away while waiting leaves its place to another.
        drop(fourth);
        let mut fifth = Box::pin(turns.take(&a));
        assert!((&mut fifth).now_or_never().is_none());
        drop((second, third));
        drop(fifth.await.expect("its turn"));
        assert!(turns.accounts().is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn an_account_has_a_quarter_of_the_connections_and_one_at_least() {
        for (connections, at_work) in [(2, 1), (8, 2), (16, 4)] {
            assert_eq!(Turns::of(connections).0.at_work, at_work);
        }
    }
}
