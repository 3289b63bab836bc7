//! The request log, by which tests count.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde::Serialize;

use crate::http::lock;

/// Older entries are dropped.
const CAPACITY: usize = 200_000;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) request_id: String,
    pub(crate) at: i64,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) idempotency_key: Option<String>,
    /// Absent while the request is under way.
    pub(crate) status: Option<u16>,
    /// Whether a stored answer was given.
    pub(crate) replayed: bool,
    /// Whether the connection was cut instead of answering.
    pub(crate) dropped: bool,
}

#[derive(Default)]
pub(crate) struct RequestLog {
    entries: Mutex<VecDeque<Entry>>,
}

impl RequestLog {
    pub(crate) fn begin(&self, entry: Entry) {
        let mut entries = lock(&self.entries);
        if entries.len() >= CAPACITY {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    pub(crate) fn end(&self, request_id: &str, status: u16, replayed: bool, dropped: bool) {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries
            .iter_mut()
            .rev()
            .find(|entry| entry.request_id == request_id)
        {
            entry.status = Some(status);
            entry.replayed = replayed;
            entry.dropped = dropped;
        }
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        lock(&self.entries).iter().cloned().collect()
    }
}
