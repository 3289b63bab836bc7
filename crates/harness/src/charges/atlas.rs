//! All points that billing-svc passed in a run of the harness, and how often each was struck: what no seed has struck
//! is named.

use std::{collections::BTreeMap, fmt, sync::Mutex};

use super::strikes::{Place, Point, lock};

/// Points that are named; the others are counted.
const NAMED: usize = 20;
/// As much of a statement is told.
const TOLD: usize = 100;

#[derive(Default)]
struct Count {
    passed: u64,
    struck: u64,
}

/// Every point that was passed.
#[derive(Default)]
pub(super) struct Atlas(Mutex<BTreeMap<Point, Count>>);

impl Atlas {
    pub(super) fn passed(&self, point: &Point) {
        lock(&self.0).entry(point.clone()).or_default().passed += 1;
    }

    pub(super) fn struck(&self, point: &Point) {
        lock(&self.0).entry(point.clone()).or_default().struck += 1;
    }
}

impl fmt::Display for Atlas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points = lock(&self.0);
        let mut kinds: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
        for (point, count) in points.iter() {
            let (all, hit, struck) = kinds.entry(point.kind()).or_default();
            *all += 1;
            *hit += u64::from(count.struck > 0);
            *struck += count.struck;
        }
        for (kind, (all, hit, struck)) in kinds {
            writeln!(f, "{kind}: struck {struck} times, {hit} of {all} points")?;
        }
        let never: Vec<_> = points.iter().filter(|(_, count)| count.struck == 0).collect();
        let hit = points.len() - never.len();
        write!(f, "{hit} of {} points that were passed were struck", points.len())?;
        for (point, count) in never.iter().take(NAMED) {
            write!(
                f,
                "\nnever struck, passed {} times: {} {}",
                count.passed,
                point.kind(),
                told(&point.place)
            )?;
        }
        match never.len().saturating_sub(NAMED) {
            0 => Ok(()),
            others => write!(f, "\nnor {others} others"),
        }
    }
}

fn told(place: &Place) -> String {
    match place {
        Place::InTransaction(text) | Place::Own(text) => text.chars().take(TOLD).collect(),
        Place::Commit | Place::Stripe(_) => String::new(),
    }
}
