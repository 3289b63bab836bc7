//! The part of the room for events that one account may take by its API keys, so that a single customer cannot keep all
//! others out. Services of our own have no such bound: they record for everybody.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use nexus_core::id::EcoId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An account has this part of all.
const PART: usize = 4;
/// And at least as much as one call may bring.
const LEAST: usize = 10_000;
/// Accounts beyond which those that have nothing here are forgotten.
const MANY: usize = 1_000;

/// What keys of all accounts may take together of room for so many: the rest is for services.
pub(super) fn of_all_keys(all: usize) -> usize {
    (all - all / PART).max(LEAST).min(all)
}

/// What one account may have. It is the same one for as long as somebody has some of it.
#[derive(Debug)]
pub(super) struct AccountRoom {
    /// Of the events that are written.
    room: Arc<Semaphore>,
    /// Of those that wait for room.
    waiting: Arc<Semaphore>,
}

/// Places that an account has, until this is dropped.
#[derive(Debug)]
pub(super) struct Places {
    _account: Arc<AccountRoom>,
    _permit: OwnedSemaphorePermit,
}

impl AccountRoom {
    /// Places for so many events; `None`: it has its part.
    pub(super) fn take(self: &Arc<Self>, events: u32) -> Option<Places> {
        let permit = self.room.clone().try_acquire_many_owned(events).ok()?;
        Some(Places { _account: self.clone(), _permit: permit })
    }

    /// Waits for them; `None`: too many do.
    pub(super) async fn take_in_turn(self: &Arc<Self>, events: u32) -> Option<Places> {
        let _waits = self.waiting.clone().try_acquire_many_owned(events).ok()?;
        let permit = self.room.clone().acquire_many_owned(events).await.ok()?;
        Some(Places { _account: self.clone(), _permit: permit })
    }
}

/// What each account has. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct AccountRooms {
    capacity: usize,
    accounts: Arc<Mutex<HashMap<EcoId, Weak<AccountRoom>>>>,
}

impl AccountRooms {
    /// Of room for so many events.
    pub(super) fn of(all: usize) -> Self {
        Self { capacity: (all / PART).max(LEAST).min(all), accounts: Arc::default() }
    }

    /// An account's.
    pub(super) fn get(&self, eco_id: &EcoId) -> Arc<AccountRoom> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = accounts.get(eco_id).and_then(Weak::upgrade) {
            return known;
        }
        if accounts.len() >= MANY {
            accounts.retain(|_, account| account.strong_count() > 0);
        }
        let places = || Arc::new(Semaphore::new(self.capacity));
        let account = Arc::new(AccountRoom { room: places(), waiting: places() });
        accounts.insert(eco_id.clone(), Arc::downgrade(&account));
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> EcoId {
        EcoId::parse(&format!("eco_{number}")).expect("an id")
    }

    #[tokio::test]
    async fn an_account_has_a_part_and_others_have_theirs() {
        let rooms = AccountRooms::of(100_000);
        let first = rooms.get(&id(1)).take(20_000).expect("there is room");
        assert!(rooms.get(&id(1)).take(5_001).is_none(), "it is the same room");
        assert!(rooms.get(&id(2)).take(25_000).is_some());
        let waits = tokio::spawn({
            let room = rooms.get(&id(1));
            async move { room.take_in_turn(20_000).await.is_some() }
        });
        while rooms.get(&id(1)).waiting.available_permits() == 25_000 {
            tokio::task::yield_now().await;
        }
        assert!(rooms.get(&id(1)).take_in_turn(5_001).await.is_none(), "as many wait as may");
        drop(first);
        assert!(waits.await.expect("it does not panic"));
    }

    #[test]
    fn who_has_nothing_is_forgotten_and_a_call_always_fits() {
        let rooms = AccountRooms::of(12_000);
        let held = rooms.get(&id(0)).take(10_000).expect("the largest call fits");
        (1..3 * MANY).for_each(|number| drop(rooms.get(&id(number))));
        assert!(rooms.accounts.lock().expect("no panic").len() <= MANY);
        assert!(rooms.get(&id(0)).take(1).is_none(), "who has something is known");
        drop(held);
        assert!(rooms.get(&id(0)).take(1).is_some());
    }
}
