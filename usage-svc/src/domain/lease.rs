//! Leased units: what a holder has in memory of a grant, and how it asks for more.
//!
//! What must hold, whatever happens in which order (the tests try all orders of small cases):
//!
//! * never more units are spent than were granted, and never more granted than the limit allows;
//! * once every holder has settled, what is consumed is exactly what was spent;
//! * units of a holder that is lost stay consumed: they are forfeited, not spent twice.
//!
//! It rests on two rules. A unit is spent, or taken to be given back, by one atomic exchange, so that it is
//! never both. And a lease is settled once, after its units were taken.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use uuid::Uuid;

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

/// What a holder asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Fewer are of no use, and none are granted then.
    pub least: i64,
    /// Units that callers wait for.
    pub need: i64,
    /// Units it would like to have, as far as there are plenty.
    pub want: i64,
}

/// The answer to a claim. `consumed` are the units consumed of the period, the grant included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The period has not begun or is over, or the account's plan has changed.
    OtherTerms,
    /// Fewer than the least are left.
    Short {
        /// Units consumed.
        consumed: i64,
        /// Other holders may give some back.
        outstanding: bool,
        /// One of these gives signs of life.
        recallable: bool,
    },
    /// A lease.
    Granted {
        /// Its units.
        units: i64,
        /// Units consumed.
        consumed: i64,
    },
}

/// What a holder gives back of a lease: none, where all was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    /// The lease.
    pub lease_id: Uuid,
    /// Units taken from memory.
    pub unspent: i64,
}

/// How long a lease should last at the pace of the last one, where units are limited.
const LIMITED_FOR: Duration = Duration::from_millis(500);
/// The same where nobody is refused: what a holder has idle keeps nobody from anything.
const UNLIMITED_FOR: Duration = Duration::from_secs(10);
/// Units that are then leased at least.
const UNLIMITED_LEAST: i64 = 1000;
/// A lease has at most so many units more than are waited for.
const MOST: i64 = 1_000_000_000;
/// A pace is not taken over less time.
const PACE_OVER: Duration = Duration::from_millis(50);

/// Units to want after `spent` units in `elapsed`.
pub fn wanted(spent: i64, elapsed: Duration, limited: bool) -> i64 {
    let (lasts, least) = if limited { (LIMITED_FOR, 0) } else { (UNLIMITED_FOR, UNLIMITED_LEAST) };
    let units = i128::from(spent.max(0)) * milliseconds(lasts) / milliseconds(elapsed.max(PACE_OVER));
    i64::try_from(units).unwrap_or(MOST).clamp(least, MOST)
}

fn milliseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_millis()).unwrap_or(i128::MAX)
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
