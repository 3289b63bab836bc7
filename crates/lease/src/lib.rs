//! What a holder of leased units has in memory, be it a replica of usage-svc or a client of it.
//!
//! | module | what it is |
//! |---|---|
//! | [`units`] | the units of one lease, each spent or taken back by one exchange |
//! | [`pace`] | how many units to want, by how quickly they are spent |
//! | [`clock`] | time that only goes forward |

pub mod clock;
pub mod pace;
pub mod units;
