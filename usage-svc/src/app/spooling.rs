//! Takes events while the database is away: into the spool, of accounts that are known, and acknowledged once they
//! are synced. Whoever finds the database away says so; from then on nobody waits for it until the drain
//! ([`super::drain`]) reaches it. New events are then written directly, beside what is still drained: which of two that
//! are the same comes first does not matter, as their identity is counted once.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{Mutex, Notify},
    task::spawn_blocking,
};

use super::{
    flush::FlushError,
    known::Known,
    record_usage::{Submission, answer},
};
use crate::{
    domain::event::{Event, Outcome},
    spool::{Call, Drainable, Spool, SpoolError},
};

/// What is counted about a spool.
#[derive(Clone, Debug, Default)]
pub struct SpoolMetrics {
    degraded: Gauge,
    events: Gauge,
    bytes: Gauge,
    damaged: Gauge,
    spooled: Counter,
    refused: Counter,
    pub(super) drained: Counter,
    pub(super) quarantined: Counter,
}

impl SpoolMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge(
            "nexus_usage_degraded",
            "1 while the database is away and events go to the spool",
            &all.degraded,
        );
        gauge("nexus_usage_spool_events", "Events in the spool", &all.events);
        gauge("nexus_usage_spool_bytes", "Bytes of the spool on its disk", &all.bytes);
        gauge(
            "nexus_usage_spool_damaged_journals",
            "Journals found damaged, lost or not to be opened since the start",
            &all.damaged,
        );
        let mut counter = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        counter("nexus_usage_spooled_events", "Events acknowledged into the spool", &all.spooled);
        counter("nexus_usage_spool_refused_events", "Events neither written nor spooled", &all.refused);
        counter("nexus_usage_drained_events", "Events of the spool that are counted", &all.drained);
        counter("nexus_usage_quarantined_events", "Events of the spool that could not be", &all.quarantined);
        all
    }
}

/// The spool in use. Clones are the same.
#[derive(Clone, Debug)]
pub struct Spooling(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spool: Spool,
    known: Arc<Known>,
    metrics: SpoolMetrics,
    /// The database was found away and not reached since.
    away: AtomicBool,
    /// The spool took nothing when it was last asked.
    refuses: AtomicBool,
    /// Held by who asks whether the volume is there: on a disk that does not answer one waits, not a crowd.
    asking: Arc<Mutex<()>>,
    /// There is something to be drained, or the database to be reached.
    work: Notify,
}

impl Spooling {
    /// Opens the spool in a folder, for events of accounts that are `known`.
    pub async fn open(
        folder: PathBuf,
        max_bytes: u64,
        known: Arc<Known>,
        metrics: SpoolMetrics,
    ) -> Result<Self, SpoolError> {
        let spool = blocking(move || Spool::open(&folder, max_bytes)).await?;
        let spooling = Self(Arc::new(Inner {
            spool,
            known,
            metrics,
            away: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            asking: Arc::default(),
            work: Notify::new(),
        }));
        spooling.0.show_level();
        // What is there from before is drained.
        spooling.0.work.notify_one();
        Ok(spooling)
    }

    /// What the database said of accounts and keys.
    pub fn known(&self) -> &Arc<Known> {
        &self.0.known
    }

    /// Whether the database was found away and not reached since: nobody needs to wait for it, events go to the spool.
    pub fn is_away(&self) -> bool {
        self.0.away.load(Ordering::Acquire)
    }

    /// Whether events are taken without the database, as far as anybody knows; asks whether the volume is there.
    pub async fn takes_events(&self) -> bool {
        if !self.0.known.is_anything() || self.0.refuses.load(Ordering::Acquire) {
            return false;
        }
        let (inner, one) = (self.0.clone(), self.0.asking.clone().lock_owned().await);
        let there = blocking(move || {
            let there = inner.spool.is_there();
            drop(one);
            there
        })
        .await;
        if there.is_err() {
            self.0.note_room(&there);
        }
        there.is_ok()
    }

    /// Notes that the database is away.
    pub fn note_away(&self) {
        if !self.0.away.swap(true, Ordering::AcqRel) {
            self.0.metrics.degraded.set(1);
            tracing::warn!("degraded: the database is away, events go to the spool");
        }
        self.0.work.notify_one();
    }

    /// Notes that the database answers.
    pub(super) fn note_back(&self) {
        if self.0.away.swap(false, Ordering::AcqRel) {
            self.0.metrics.degraded.set(0);
            tracing::info!("the database answers, events are written to it");
        }
    }

    /// Takes the events of calls, each call's all or none, and answers them.
    pub(super) async fn keep(&self, group: Vec<Submission>) {
        let mut taken = Vec::new();
        for mut submission in group {
            match self.judge(&mut submission.events) {
                Some(outcomes) => taken.push((submission, outcomes)),
                None => self.refuse(submission),
            }
        }
        if taken.is_empty() {
            return;
        }
        let inner = self.0.clone();
        let (taken, kept) = blocking(move || {
            let kept = inner.append(&taken);
            (taken, kept)
        })
        .await;
        for ((submission, outcomes), kept) in taken.into_iter().zip(kept) {
            if kept {
                answer(vec![submission], Ok(outcomes));
            } else {
                self.refuse(submission);
            }
        }
        self.0.work.notify_one();
    }

    /// Outcomes for the events of a call, as far as nobody needs the database for them; else `None`.
    fn judge(&self, events: &mut [Event]) -> Option<Vec<Outcome>> {
        let judged = events.iter_mut().map(|event| match self.0.known.judge(event)? {
            Ok(now) => {
                event.accepted = Some(now);
                Some(Outcome::Accepted)
            }
            Err(refusal) => Some(Outcome::Refused(refusal)),
        });
        judged.collect()
    }

    fn refuse(&self, submission: Submission) {
        self.0.metrics.refused.inc_by(submission.events.len() as u64);
        answer(vec![submission], Err(FlushError::Unavailable));
    }

    /// Finds out whether a spool that took nothing has room by now.
    pub(super) async fn ask_for_room(&self) {
        if self.0.refuses.load(Ordering::Acquire) {
            let inner = self.0.clone();
            let room = blocking(move || inner.spool.has_room()).await;
            self.0.note_room(&room);
        }
    }

    /// Returns when there may be something to be drained, or the database to be reached.
    pub(super) async fn work(&self) {
        self.0.work.notified().await;
    }

    /// The oldest journal; new events go to others.
    pub(super) async fn oldest(&self) -> Result<Option<Drainable>, SpoolError> {
        let inner = self.0.clone();
        blocking(move || {
            let oldest = inner.spool.oldest();
            inner.show_level();
            oldest
        })
        .await
    }

    /// Notes how many events of a journal are left.
    pub(super) async fn note_left(&self, journal: &Drainable, left: usize) {
        let (inner, id) = (self.0.clone(), journal.id);
        blocking(move || {
            inner.spool.note_left(id, left as u64);
            inner.show_level();
        })
        .await;
    }

    /// Removes a journal that is drained.
    pub(super) async fn discard(&self, journal: Drainable) -> Result<(), SpoolError> {
        let inner = self.0.clone();
        blocking(move || {
            let discarded = inner.spool.discard(journal.id);
            inner.show_level();
            discarded
        })
        .await
    }

    pub(super) fn metrics(&self) -> &SpoolMetrics {
        &self.0.metrics
    }
}

impl Inner {
    /// Says which of the calls are kept: all or none, but those of accounts whose keys have their part.
    fn append(&self, taken: &[(Submission, Vec<Outcome>)]) -> Vec<bool> {
        let calls: Vec<Call<'_>> = taken.iter().map(call).collect();
        if calls.iter().all(|call| call.events.is_empty()) {
            return vec![true; calls.len()];
        }
        let appended = self.spool.append(&calls);
        self.show_level();
        let kept = appended.as_deref().unwrap_or_default();
        let spooled: usize =
            calls.iter().zip(kept).filter(|(_, kept)| **kept).map(|(call, _)| call.events.len()).sum();
        self.metrics.spooled.inc_by(spooled as u64);
        // Where nothing was written, nobody knows.
        if spooled > 0 || appended.is_err() {
            self.note_room(&appended);
        }
        appended.unwrap_or_else(|_noted| vec![false; calls.len()])
    }

    fn note_room<T>(&self, result: &Result<T, SpoolError>) {
        let refuses = result.is_err();
        match result {
            _ if self.refuses.swap(refuses, Ordering::AcqRel) == refuses => {}
            Ok(_) => tracing::info!("the spool takes events again"),
            Err(error) => tracing::error!(%error, "the spool takes no events"),
        }
    }

    fn show_level(&self) {
        let level = self.spool.level();
        let shown = [
            (&self.metrics.events, level.events),
            (&self.metrics.bytes, level.bytes),
            (&self.metrics.damaged, level.damaged),
        ];
        for (gauge, value) in shown {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}

/// What of a call goes to the spool.
fn call((submission, outcomes): &(Submission, Vec<Outcome>)) -> Call<'_> {
    let judged = submission.events.iter().zip(outcomes);
    let accepted = judged.filter(|(_, outcome)| **outcome == Outcome::Accepted);
    Call { events: accepted.map(|(event, _)| event).collect(), by_key: submission.own.is_some() }
}

/// Does what blocks on the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        // It is never cancelled once it runs, and before that only as the runtime ends, and this task with it.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => std::future::pending().await,
        },
    }
}
