//! A correction of an account's usage.

use nexus_core::id::EcoId;
use uuid::Uuid;

use super::overage::Facts;

/// Units that a correction has at most, either way.
pub const MAX_UNITS: i64 = 1_000_000_000_000;
/// Characters that a reason has at most.
pub const MAX_REASON: usize = 500;

/// What is asked for, every field valid in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    /// Account.
    pub eco_id: EcoId,
    /// Units to add; negative: to take away.
    pub units: i64,
    /// Why.
    pub reason: String,
    /// Makes a repeat return the first answer.
    pub request_id: Uuid,
}

impl Adjustment {
    /// Whether the segment it belongs to would count less than nothing. What is in closed segments is priced for good,
    /// and cannot be taken away any more.
    pub fn goes_below_zero(&self, facts: &Facts) -> bool {
        facts.open_units.saturating_add(self.units) < 0
    }
}
