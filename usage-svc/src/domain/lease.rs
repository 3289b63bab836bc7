//! Leased units: how a holder asks for them and gives them back.
//!
//! What must hold, whatever happens in which order (the tests try all orders of small cases):
//!
//! * never more units are spent than were granted, and never more granted than the limit allows;
//! * once every holder has settled, what is consumed is exactly what was spent;
//! * units of a holder that is lost stay consumed: they are forfeited, not spent twice.
//!
//! It rests on two rules. A unit is spent, or taken to be given back, by one atomic exchange, so that it is
//! never both. And a lease is settled once, after its units were taken.

pub use nexus_lease::{pace::wanted, units::Units};
use uuid::Uuid;

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
    /// The period has not begun or is over, or the account's plan or spend cap has changed.
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

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
