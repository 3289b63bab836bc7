//! The request log, by which tests count.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde::Serialize;
use tokio::sync::watch;

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
    /// None while the request is under way, and when it was never answered.
    pub(crate) status: Option<u16>,
    /// Whether a stored answer was given.
    pub(crate) replayed: bool,
    /// Whether the connection was cut instead of answering.
    pub(crate) dropped: bool,
}

pub(crate) struct RequestLog {
    entries: Mutex<VecDeque<Entry>>,
    under_way: watch::Sender<usize>,
}

/// How a request ended.
pub(crate) struct Ended {
    /// None, when the connection was cut instead of answering.
    pub(crate) status: Option<u16>,
    pub(crate) replayed: bool,
}

impl RequestLog {
    pub(crate) fn new() -> Self {
        Self { entries: Mutex::default(), under_way: watch::Sender::new(0) }
    }

    pub(crate) fn begin(&self, entry: Entry) {
        let mut entries = lock(&self.entries);
        if entries.len() >= CAPACITY {
            entries.pop_front();
        }
        entries.push_back(entry);
        self.under_way.send_modify(|count| *count += 1);
    }

    pub(crate) fn end(&self, request_id: &str, ended: &Ended) {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.iter_mut().rev().find(|entry| entry.request_id == request_id) {
            entry.status = ended.status;
            entry.replayed = ended.replayed;
            entry.dropped = ended.status.is_none();
        }
        self.under_way.send_modify(|count| *count -= 1);
    }

    /// Waits until no request is under way.
    pub(crate) async fn until_idle(&self) {
        let mut under_way = self.under_way.subscribe();
        // The sender lives in `self`, so this ends only when the count is zero.
        under_way.wait_for(|count| *count == 0).await.map(drop).unwrap_or_default();
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        lock(&self.entries).iter().cloned().collect()
    }
}
