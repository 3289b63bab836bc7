//! The tasks that write, each the accounts that are its own. While a flush commits, the next one gathers: group
//! commit without a linger, so that a lone event waits for nobody and a crowd shares the cost.

use std::{slice, sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram},
    registry::Registry,
};
use sqlx::PgPool;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    aside::{self, Aside},
    away::Away,
    flush::{self, FlushError, Memory},
    known::Known,
    locked::{Flushed, Lock, Locked, Wait},
    record_usage::{Recorder, Submission, answer},
};
use crate::domain::event::Event;

/// Events a flush takes at most, unless a single call brings more. Large flushes are cheap ones: many events
/// share a counter and a rollup.
const MAX_FLUSH: usize = 40_000;

/// What the writers count.
#[derive(Clone)]
pub struct WriterMetrics {
    events: Counter,
    failures: Counter,
    sizes: Histogram,
}

impl WriterMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self {
            events: Counter::default(),
            failures: Counter::default(),
            sizes: Histogram::new([1.0, 10.0, 100.0, 1_000.0, 10_000.0]),
        };
        registry.register("nexus_usage_flushed_events", "Events judged and committed", all.events.clone());
        registry.register("nexus_usage_flush_failures", "Flushes that failed", all.failures.clone());
        registry.register("nexus_usage_flush_size_events", "Events of a flush", all.sizes.clone());
        all
    }
}

/// How many writers there are, and what they may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Writers, beside those of what is set aside.
    pub writers: u32,
    /// Longest time of one try.
    pub one_try: Duration,
    /// Events that may wait for all of them together.
    pub events: usize,
}

/// Starts the writers, and those of what is set aside. `pool` is their own, with a connection for each, so that reads
/// never keep them waiting for one; what the database says of accounts goes to `known`, and events that it cannot take
/// go where `away` says. After `stop` they write what is queued and end.
pub fn start(
    pool: &PgPool,
    bounds: Bounds,
    metrics: &WriterMetrics,
    known: &Arc<Known>,
    away: &Away,
    stop: &CancellationToken,
) -> (Recorder, JoinHandle<()>) {
    let (recorder, queues) = Recorder::new(bounds.writers as usize, bounds.events);
    let (aside, held) = Aside::new(recorder.share());
    let writer = || Writer {
        pool: pool.clone(),
        bound: bounds.one_try,
        memory: Memory::new(known.clone()),
        metrics: metrics.clone(),
        away: away.clone(),
    };
    let mut tasks = JoinSet::new();
    for queue in queues {
        let queue = Queue { queue, next: None, aside: aside.clone() };
        tasks.spawn(queue.serve(writer(), stop.clone()));
    }
    drop(aside);
    let waiting = (0..aside::LOCKS).map(|_| writer()).collect();
    tasks.spawn(held.serve(waiting, writer()));
    let all = async move {
        tasks.join_all().await;
    };
    (recorder, tokio::spawn(all))
}

/// What comes to a writer.
struct Queue {
    queue: mpsc::Receiver<Submission>,
    /// Taken from the queue, but too large for the flush at hand.
    next: Option<Submission>,
    aside: Aside,
}

impl Queue {
    async fn serve(mut self, mut writer: Writer, stop: CancellationToken) {
        while let Some(first) = self.first(&stop).await {
            let group = self.gather(first);
            self.aside.put(writer.write(group).await);
        }
    }

    async fn first(&mut self, stop: &CancellationToken) -> Option<Submission> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        tokio::select! {
            biased;
            first = self.queue.recv() => first,
            () = stop.cancelled() => {
                self.queue.close();
                self.queue.recv().await
            }
        }
    }

    /// All that waits, up to the bound.
    fn gather(&mut self, first: Submission) -> Vec<Submission> {
        let mut events = first.events.len();
        let mut group = vec![first];
        while let Ok(next) = self.queue.try_recv() {
            events += next.events.len();
            if events > MAX_FLUSH {
                self.next = Some(next);
                break;
            }
            group.push(next);
        }
        group
    }
}

/// A call, and the lock that it lacks.
pub(super) type Lacking = (Submission, Lock);

impl Locked {
    /// Those of the calls that need any of it, and the others.
    pub(super) fn part(&self, group: Vec<Submission>) -> (Vec<Lacking>, Vec<Submission>) {
        let (mut waits, mut free) = (Vec::new(), Vec::new());
        for call in group {
            match call.events.iter().find_map(|event| self.lacks(event)) {
                Some(lock) => waits.push((call, lock)),
                None => free.push(call),
            }
        }
        (waits, free)
    }
}

/// Writes groups of calls, with a connection at a time.
pub(super) struct Writer {
    pub(super) pool: PgPool,
    pub(super) bound: Duration,
    pub(super) memory: Memory,
    metrics: WriterMetrics,
    away: Away,
}

impl Writer {
    /// Writes a group and answers its calls, but those that need what is locked: they come back.
    pub(super) async fn write(&mut self, mut group: Vec<Submission>) -> Vec<Lacking> {
        use FlushError::{Busy, Failed, Rejected};
        let mut locked = Vec::new();
        while !group.is_empty() {
            match self.flush(&group, Wait::Long).await {
                Ok(Flushed::Locked(what)) => {
                    let (waits, free) = what.part(group);
                    locked.extend(waits);
                    group = free;
                }
                Ok(Flushed::Counted(outcomes)) => {
                    answer(group, Ok(outcomes));
                    break;
                }
                Err(Failed | Rejected | Busy) if group.len() > 1 => {
                    locked.extend(self.write_each(group).await);
                    break;
                }
                Err(error) => {
                    self.fail(group, error).await;
                    break;
                }
            }
        }
        locked
    }

    /// The same, each call alone, so that one that cannot be written, by a fault of ours or for a row that somebody
    /// holds, does not fail the others.
    async fn write_each(&mut self, group: Vec<Submission>) -> Vec<Lacking> {
        let mut locked = Vec::new();
        for call in group {
            match self.flush(slice::from_ref(&call), Wait::Briefly).await {
                Ok(Flushed::Locked(what)) => locked.extend(what.part(vec![call]).0),
                Ok(Flushed::Counted(outcomes)) => answer(vec![call], Ok(outcomes)),
                Err(error) => self.fail(vec![call], error).await,
            }
        }
        locked
    }

    async fn fail(&self, group: Vec<Submission>, error: FlushError) {
        match error {
            FlushError::Unavailable => self.away.take(group).await,
            _ => answer(group, Err(error)),
        }
    }

    async fn flush(&mut self, group: &[Submission], wait: Wait) -> Result<Flushed, FlushError> {
        if self.away.is_on() {
            return Err(FlushError::Unavailable);
        }
        let (span, events) = of(group);
        let flushed = flush::run(&self.pool, self.bound, &mut self.memory, wait, &events, None);
        let result = flushed.instrument(span).await;
        self.away.note(matches!(result, Err(FlushError::Unavailable)));
        match &result {
            Ok(Flushed::Counted(outcomes)) => self.count(events.len(), Some(outcomes.len())),
            Ok(Flushed::Locked(_)) => {}
            Err(_) => self.count(events.len(), None),
        }
        result
    }

    pub(super) fn count(&self, events: usize, counted: Option<usize>) {
        self.metrics.sizes.observe(events as f64);
        match counted {
            Some(events) => self.metrics.events.inc_by(events as u64),
            None => self.metrics.failures.inc(),
        };
    }
}

/// The events of a group, and the span of their flush.
pub(super) fn of(group: &[Submission]) -> (tracing::Span, Vec<&Event>) {
    let events: Vec<&Event> = group.iter().flat_map(|s| &s.events).collect();
    let span = tracing::info_span!(parent: &group[0].span, "usage.flush", events = events.len());
    for other in &group[1..] {
        span.follows_from(&other.span);
    }
    (span, events)
}
