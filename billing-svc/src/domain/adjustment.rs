//! A correction of an account's usage.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use uuid::Uuid;

use super::overage::{ClosedSegment, Facts};

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
    /// An instant in its period; `None`: the current one.
    pub period_time: Option<DateTime<Utc>>,
    /// Its segment; `None`: the last.
    pub segment: Option<usize>,
}

/// Where a correction counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: usize,
    /// Units it has so far.
    pub units: i64,
}

impl Adjustment {
    /// Where it counts; `None`: the period has no such segment.
    pub fn place(&self, facts: &Facts) -> Option<Place> {
        let last = facts.closed.len();
        let segment = self.segment.unwrap_or(last);
        let units = if segment == last { facts.open_units } else { facts.closed.get(segment)?.units };
        Some(Place { segment, units })
    }

    /// The closed segments with it. Those behind it begin and end so many units later, or earlier; one whose plan was not
    /// granted goes on having the overage it had.
    pub fn corrected(&self, facts: &Facts, place: Place) -> Vec<ClosedSegment> {
        let mut start = 0;
        let segments = facts.closed.iter().enumerate().map(|(number, segment)| {
            let units = segment.units + if number == place.segment { self.units } else { 0 };
            let mut corrected = ClosedSegment { units, ..*segment };
            if corrected.granted {
                corrected.overage_units = corrected.accrues(start);
            }
            start += units;
            corrected
        });
        segments.collect()
    }
}
