//! Rollups column by column, as the statements take them.

use crate::domain::delta::Rollup;

/// One array a column. Sketches differ in length, so they come in one array with the bounds of each.
pub(super) struct RollupArrays<'a, T> {
    pub(super) eco_ids: Vec<&'a str>,
    pub(super) at: Vec<T>,
    pub(super) routes: Vec<&'a str>,
    pub(super) methods: Vec<&'a str>,
    pub(super) status_classes: Vec<i16>,
    pub(super) units: Vec<i64>,
    pub(super) events: Vec<i64>,
    pub(super) latencies_ms: Vec<i64>,
    /// Where each sketch begins, from 1.
    pub(super) starts: Vec<i32>,
    /// Its last entry.
    pub(super) ends: Vec<i32>,
    pub(super) entries: Vec<i64>,
}

impl<'a, T: Copy> RollupArrays<'a, T> {
    pub(super) fn of(rollups: &[Rollup<'a, T>]) -> Self {
        let mut entries = Vec::new();
        let (starts, ends) = rollups
            .iter()
            .map(|r| {
                let start = position(entries.len() + 1);
                entries.extend_from_slice(&r.sketch);
                (start, position(entries.len()))
            })
            .unzip();
        Self {
            eco_ids: rollups.iter().map(|r| r.eco_id).collect(),
            at: rollups.iter().map(|r| r.at).collect(),
            routes: rollups.iter().map(|r| r.route).collect(),
            methods: rollups.iter().map(|r| r.method).collect(),
            status_classes: rollups.iter().map(|r| r.status_class).collect(),
            units: rollups.iter().map(|r| r.units).collect(),
            events: rollups.iter().map(|r| r.events).collect(),
            latencies_ms: rollups.iter().map(|r| r.latency_ms).collect(),
            starts,
            ends,
            entries,
        }
    }
}

fn position(length: usize) -> i32 {
    i32::try_from(length).expect("a flush has at most one entry per event")
}
