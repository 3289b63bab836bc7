//! Shares of what a server has, places of calls or room for bytes: one account has a quarter at most, so that a single
//! customer cannot keep all others out by calls that do not end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_core::id::EcoId;

/// What each account holds. Clones are the same.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: u32,
    held: Mutex<HashMap<EcoId, u32>>,
}

/// What counts as an account's until it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    eco_id: EcoId,
    size: u32,
}

impl Shares {
    /// Of so many places.
    pub fn of(places: u32) -> Self {
        Self::of_at_most(places, u32::MAX)
    }

    /// The same, where an account has so much at most, however many places there are.
    pub fn of_at_most(places: u32, most: u32) -> Self {
        Self(Arc::new(Inner { most: (places / 4).clamp(1, most.max(1)), held: Mutex::default() }))
    }

    /// A place for a call of the account, unless it has its share.
    pub fn enter(&self, eco_id: &EcoId) -> Option<Share> {
        let mut share = self.nothing(eco_id);
        share.resize(1).then_some(share)
    }

    /// A share of the account that may grow.
    pub fn nothing(&self, eco_id: &EcoId) -> Share {
        Share { shares: self.clone(), eco_id: eco_id.clone(), size: 0 }
    }

    /// How much the account has.
    pub fn of_account(&self, eco_id: &EcoId) -> u32 {
        self.held().get(eco_id).copied().unwrap_or_default()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<EcoId, u32>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Whose it is.
    pub fn eco_id(&self) -> &EcoId {
        &self.eco_id
    }

    /// Makes it so large, unless the account would have more than it may; whether it did.
    pub fn resize(&mut self, size: u32) -> bool {
        if size == self.size {
            return true;
        }
        let mut held = self.shares.held();
        let others = held.get(&self.eco_id).map_or(0, |all| all - self.size);
        let all = others.saturating_add(size);
        if size > self.size && all > self.shares.0.most {
            return false;
        }
        if all == 0 {
            held.remove(&self.eco_id);
        } else {
            held.insert(self.eco_id.clone(), all);
        }
        self.size = size;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_a_quarter_and_others_have_theirs() {
        let shares = Shares::of(8);
        let id = |text| EcoId::parse(text).expect("an id");
        let first = shares.enter(&id("eco_a")).expect("its first");
        let _second = shares.enter(&id("eco_a")).expect("its second");
        assert!(shares.enter(&id("eco_a")).is_none());
        let other = shares.enter(&id("eco_b")).expect("another account's");
        drop(first);
        assert!(shares.enter(&id("eco_a")).is_some());
        drop(other);
        assert!(!shares.held().contains_key(&id("eco_b")), "nothing is kept of who is gone");
        assert!(Shares::of(1).enter(&id("eco_a")).is_some());
        let few = Shares::of_at_most(1_000, 1);
        let _held = few.enter(&id("eco_a")).expect("its first");
        assert!(few.enter(&id("eco_a")).is_none());
        let mut bytes = Shares::of(400).nothing(&id("eco_a"));
        assert!(bytes.resize(100) && !bytes.resize(101) && bytes.resize(1));
    }
}
