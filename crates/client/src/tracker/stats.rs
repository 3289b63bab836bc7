//! What became of everything that was tracked.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nexus_proto::usage::v1::EventOutcome;
use tokio::sync::watch;

/// Figures since the tracker was built. `tracked + recovered = accepted + duplicates + refused.total() +
/// undelivered + damaged + queued + on_disk`, once nothing moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events taken by `track`.
    pub tracked: u64,
    /// Events found in the disk buffer when it was opened.
    pub recovered: u64,
    /// Events that the server counted.
    pub accepted: u64,
    /// Events that the server had counted before: a retry whose first answer was lost.
    pub duplicates: u64,
    /// Events that the server refused for good.
    pub refused: Refused,
    /// Events not taken because the queue was full.
    pub dropped_queue_full: u64,
    /// Events not taken because the tracker was shut down.
    pub dropped_closed: u64,
    /// Events that were taken and lost at a shutdown whose deadline passed.
    pub undelivered: u64,
    /// Records of the disk buffer that could not be read back.
    pub damaged: u64,
    /// Events in memory, not acknowledged yet.
    pub queued: u64,
    /// Events in the disk buffer, not acknowledged yet.
    pub on_disk: u64,
    /// Calls that failed and are made again.
    pub retries: u64,
    /// Failures of the disk buffer; its events then stay in memory.
    pub disk_errors: u64,
    /// Why the last call failed, while the server has not answered since.
    pub trouble: Option<String>,
}

impl Stats {
    /// Events that were lost or never taken: nothing will count them.
    pub fn lost(&self) -> u64 {
        self.dropped_queue_full + self.dropped_closed + self.undelivered + self.damaged
    }
}

/// Events refused for good, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// The identity had been used for another payload.
    pub conflict: u64,
    /// There is no such account.
    pub unknown_account: u64,
    /// The account was closed.
    pub closed_account: u64,
    /// Older than 35 days.
    pub too_old: u64,
    /// More than 5 minutes ahead of the server's clock.
    pub in_the_future: u64,
    /// A field is invalid.
    pub invalid: u64,
    /// An outcome this version does not know.
    pub other: u64,
}

impl Refused {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.conflict
            + self.unknown_account
            + self.closed_account
            + self.too_old
            + self.in_the_future
            + self.invalid
            + self.other
    }
}

/// The figures while they change.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) tracked: AtomicU64,
    pub(super) recovered: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) dropped_queue_full: AtomicU64,
    pub(super) dropped_closed: AtomicU64,
    pub(super) undelivered: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) queued: AtomicU64,
    pub(super) on_disk: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) disk_errors: AtomicU64,
    refused: Mutex<Refused>,
    trouble: Mutex<Option<String>>,
    away: watch::Sender<bool>,
}

pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

pub(super) fn subtract(counter: &AtomicU64, n: usize) {
    counter.fetch_sub(n as u64, Ordering::Relaxed);
}

pub(super) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(super) fn refuse(&self, outcome: EventOutcome) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *match outcome {
            EventOutcome::Conflict => &mut refused.conflict,
            EventOutcome::UnknownAccount => &mut refused.unknown_account,
            EventOutcome::ClosedAccount => &mut refused.closed_account,
            EventOutcome::TooOld => &mut refused.too_old,
            EventOutcome::InTheFuture => &mut refused.in_the_future,
            EventOutcome::Invalid => &mut refused.invalid,
            EventOutcome::Unspecified | EventOutcome::Accepted | EventOutcome::Duplicate => {
                &mut refused.other
            }
        } += 1;
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(super) fn set_away(&self, away: bool) {
        self.away.send_if_modified(|before| std::mem::replace(before, away) != away);
    }

    /// Returns while no event can be delivered.
    pub(super) async fn away(&self) {
        // The sender lives in `self`.
        let _ = self.away.subscribe().wait_for(|away| *away).await;
    }

    pub(super) fn snapshot(&self) -> Stats {
        Stats {
            tracked: get(&self.tracked),
            recovered: get(&self.recovered),
            accepted: get(&self.accepted),
            duplicates: get(&self.duplicates),
            refused: *self.refused.lock().unwrap_or_else(PoisonError::into_inner),
            dropped_queue_full: get(&self.dropped_queue_full),
            dropped_closed: get(&self.dropped_closed),
            undelivered: get(&self.undelivered),
            damaged: get(&self.damaged),
            queued: get(&self.queued),
            on_disk: get(&self.on_disk),
            retries: get(&self.retries),
            disk_errors: get(&self.disk_errors),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tracked, {} accepted, {} duplicates, {} refused, {} lost, {} queued, {} on disk",
            self.tracked + self.recovered,
            self.accepted,
            self.duplicates,
            self.refused.total(),
            self.lost(),
            self.queued,
            self.on_disk
        )
    }
}
