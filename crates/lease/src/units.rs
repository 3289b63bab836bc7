//! The units of one lease.

use std::sync::atomic::{AtomicI64, Ordering};

/// The units of one lease that are neither spent nor taken back. More units than were granted are another
/// lease.
#[derive(Debug)]
pub struct Units(AtomicI64);

impl Units {
    /// So many.
    pub fn new(units: i64) -> Self {
        Self(AtomicI64::new(units))
    }

    /// Spends units, all or none; whether they were there. One compare-and-swap where nobody interferes.
    pub fn spend(&self, units: i64) -> bool {
        let mut left = self.0.load(Ordering::Relaxed);
        while left >= units {
            match self.0.compare_exchange_weak(left, left - units, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => left = now,
            }
        }
        false
    }

    /// Takes all that is left: from now on nothing can be spent.
    pub fn take(&self) -> i64 {
        self.0.swap(0, Ordering::AcqRel)
    }

    /// Puts back units that were spent, and of which nothing came.
    pub fn put_back(&self, units: i64) {
        self.0.fetch_add(units, Ordering::AcqRel);
    }

    /// How many are left.
    pub fn left(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}
