//! Shares of a server's places: one account has a quarter of them at most, so that a single customer cannot
//! keep all others out by calls that do not end.

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

/// A place that counts as an account's until it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    eco_id: EcoId,
}

impl Shares {
    /// Of so many places.
    pub fn of(places: u32) -> Self {
        Self(Arc::new(Inner { most: (places / 4).max(1), held: Mutex::default() }))
    }

    /// A place for a call of the account, unless it has its share.
    pub fn enter(&self, eco_id: &EcoId) -> Option<Share> {
        let mut held = self.held();
        let count = held.entry(eco_id.clone()).or_default();
        if *count >= self.0.most {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), eco_id: eco_id.clone() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<EcoId, u32>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(count) = held.get_mut(&self.eco_id) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.eco_id);
            }
        }
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
    }
}
