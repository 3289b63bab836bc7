//! A correction of an account's usage.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, money};
use uuid::Uuid;

use super::overage::{ClosedSegment, Facts, Price};

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

    /// The closed segments with it. Those behind it begin and end so many units later, or earlier; one that had no overage
    /// of its counts, since its plan was not granted, goes on having what it had.
    pub fn corrected(&self, facts: &Facts, place: Place) -> Vec<ClosedSegment> {
        let (mut before, mut after) = (0, 0);
        let segments = facts.closed.iter().enumerate().map(|(number, segment)| {
            let units = segment.units + if number == place.segment { self.units } else { 0 };
            let follows = segment.overage_units == overage(segment, before, before + segment.units);
            let overage_units = match follows {
                true => overage(segment, after, after + units),
                false => segment.overage_units,
            };
            (before, after) = (before + segment.units, after + units);
            ClosedSegment { units, overage_units, ..*segment }
        });
        segments.collect()
    }
}

fn overage(segment: &ClosedSegment, start: i64, end: i64) -> i64 {
    match segment.terms.price {
        Price::Is(price) if price.micros == 0 => 0,
        _ => money::overage_units(segment.terms.included, start, end),
    }
}
