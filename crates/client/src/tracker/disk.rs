//! The disk buffer in the worker's hands: what has been read of it, what is to be removed, and a rest after a
//! failure.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::stats::{Counters, add};
use crate::spool::{Found, Spool, SpoolError};

/// How long a disk that failed is left alone.
const REST: Duration = Duration::from_secs(1);

/// The disk buffer, as the worker uses it.
pub(super) struct Disk {
    spool: Arc<Spool>,
    /// Number from which on nothing has been read.
    pub(super) cursor: u64,
    /// Records from there on.
    pub(super) unread: u64,
    /// Numbers to be removed.
    pub(super) settled: Vec<u64>,
    pub(super) full: bool,
    pub(super) rests_until: Option<Instant>,
}

impl Disk {
    pub(super) fn new((spool, found): (Arc<Spool>, Found)) -> Self {
        Self { spool, cursor: 0, unread: found.records, settled: Vec::new(), full: false, rests_until: None }
    }

    pub(super) fn works(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| until <= now)
    }

    /// Does something with the spool, off the runtime's workers.
    pub(super) async fn with<T: Send + 'static>(
        &mut self,
        counters: &Counters,
        work: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Option<T> {
        let spool = self.spool.clone();
        let done = tokio::task::spawn_blocking(move || work(&spool)).await;
        match done.unwrap_or(Err(SpoolError::Stopped)) {
            Ok(value) => {
                self.rests_until = None;
                Some(value)
            }
            Err(error) => {
                tracing::error!(%error, "the disk buffer of usage events failed");
                add(&counters.disk_errors, 1);
                self.rests_until = Some(Instant::now() + REST);
                None
            }
        }
    }
}
