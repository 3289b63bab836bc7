//! Types and rules; pure.
//!
//! | module | what it decides |
//! |---|---|
//! | [`api_key`] | an API key, and which texts open it |
//! | [`event`] | what an event is, and which two are the same |
//! | [`judge`] | whether an event is taken, and the period it counts in |
//! | [`admission`] | which units of a flush were admitted before |
//! | [`cursor`] | how far a journal of the spool is drained |
//! | [`delta`] | what the new rows of a flush add to counters, rollups and leases |
//! | [`quarantine`] | why an event that was acknowledged could not be counted |
//! | [`lease`] | leased units in memory, and how a holder asks for more |
//! | [`quota`] | an account's terms and where it stands |

pub mod admission;
pub mod api_key;
pub mod cursor;
pub mod delta;
pub mod event;
pub mod judge;
pub mod lease;
pub mod quarantine;
pub mod quota;
