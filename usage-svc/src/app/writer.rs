//! The tasks that write, each the accounts that are its own. While a flush commits, the next one gathers: group
//! commit without a linger, so that a lone event waits for nobody and a crowd shares the cost.

use std::{sync::Arc, time::Duration};

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
    flush::{self, FlushError, Memory},
    known::Known,
    locked::{Flushed, Wait},
    record_usage::{Recorder, Submission, answer},
    spooling::Spooling,
};
use crate::domain::event::{Event, Outcome};

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
    /// Writers, beside the one that waits for locks.
    pub writers: u32,
    /// Longest time of one try.
    pub one_try: Duration,
    /// Events that may wait for all of them together.
    pub events: usize,
}

/// Starts the writers, and the one that waits for locks. `pool` is their own, with a connection for each, so that reads
/// never keep them waiting for one; what the database says of accounts goes to `known`. With a spool, events go there
/// while the database is away. After `stop` they write what is queued and end.
pub fn start(
    pool: &PgPool,
    bounds: Bounds,
    metrics: &WriterMetrics,
    known: &Arc<Known>,
    spooling: Option<&Spooling>,
    stop: &CancellationToken,
) -> (Recorder, JoinHandle<()>) {
    let Bounds { writers, one_try: bound, events: capacity } = bounds;
    let (recorder, queues) = Recorder::new(writers as usize, capacity);
    // What is set aside keeps its room in the recorder, so that this one is never full.
    let (aside, set_aside) = mpsc::channel(capacity);
    let writer = |queue, aside| {
        let (pool, metrics, spooling) = (pool.clone(), metrics.clone(), spooling.cloned());
        let memory = Memory::new(known.clone());
        Writer { pool, bound, queue, next: None, aside, memory, metrics, spooling }
    };
    let mut tasks = JoinSet::new();
    for queue in queues {
        tasks.spawn(writer(queue, Some(aside.clone())).run(stop.clone()));
    }
    // It ends after the others.
    tasks.spawn(writer(set_aside, None).run(CancellationToken::new()));
    let all = async move {
        tasks.join_all().await;
    };
    (recorder, tokio::spawn(all))
}

struct Writer {
    pool: PgPool,
    bound: Duration,
    queue: mpsc::Receiver<Submission>,
    /// Taken from the queue, but too large for the flush at hand.
    next: Option<Submission>,
    /// To the one that waits for locks; `None`: this is the one.
    aside: Option<mpsc::Sender<Submission>>,
    memory: Memory,
    metrics: WriterMetrics,
    spooling: Option<Spooling>,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) {
        while let Some(first) = self.first(&stop).await {
            let group = self.gather(first);
            self.flush(group).await;
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

    /// Writes a group and answers each of its calls.
    async fn flush(&mut self, group: Vec<Submission>) {
        if let Some(spooling) = self.spooling.as_ref().filter(|spooling| spooling.is_away()) {
            return spooling.keep(group).await;
        }
        let locked = self.write_free(group).await;
        if locked.is_empty() {
            return;
        }
        match self.aside.clone() {
            Some(aside) => {
                for submission in locked {
                    if let Err(error) = aside.try_send(submission) {
                        let (mpsc::error::TrySendError::Full(submission)
                        | mpsc::error::TrySendError::Closed(submission)) = error;
                        answer(vec![submission], Err(FlushError::Busy));
                    }
                }
            }
            None => match self.write(&locked, Wait::Long).await {
                // Of several locks some may be free by now.
                Err(FlushError::Busy) => answer(self.write_free(locked).await, Err(FlushError::Busy)),
                result => self.finish_each(locked, result).await,
            },
        }
    }

    /// Writes what of a group needs nothing that is locked, and answers it; returns the rest.
    async fn write_free(&mut self, mut group: Vec<Submission>) -> Vec<Submission> {
        let mut aside = Vec::new();
        while !group.is_empty() {
            match self.write_promptly(&group).await {
                Ok(Flushed::Locked(locked)) => {
                    let needs = |call: &Submission| call.events.iter().any(|event| locked.concerns(event));
                    let (waits, free) = group.into_iter().partition::<Vec<_>, _>(needs);
                    aside.extend(waits);
                    group = free;
                }
                Ok(Flushed::Counted(outcomes)) => {
                    self.finish(group, Ok(outcomes)).await;
                    break;
                }
                Err(error) => {
                    self.finish_each(group, Err(error)).await;
                    break;
                }
            }
        }
        aside
    }

    /// Answers a group. Where it failed by a fault of ours, or by what some of it waited for, each call is written alone,
    /// so that one that cannot be written does not fail the others.
    async fn finish_each(&mut self, group: Vec<Submission>, result: Result<Vec<Outcome>, FlushError>) {
        use FlushError::{Busy, Failed, Rejected};
        if !matches!(result, Err(Failed | Rejected | Busy)) || group.len() == 1 {
            return self.finish(group, result).await;
        }
        for alone in group {
            let result = self.write(std::slice::from_ref(&alone), Wait::Briefly).await;
            self.finish(vec![alone], result).await;
        }
    }

    /// Answers a group; what the database could not take goes to the spool, if there is one. Whether it was counted
    /// all the same, as where the answer to its commit was lost, the drain finds out.
    async fn finish(&self, group: Vec<Submission>, result: Result<Vec<Outcome>, FlushError>) {
        match &self.spooling {
            Some(spooling) if result == Err(FlushError::Unavailable) => {
                spooling.note_away();
                spooling.keep(group).await;
            }
            _ => answer(group, result),
        }
    }

    async fn write(&mut self, group: &[Submission], wait: Wait) -> Result<Vec<Outcome>, FlushError> {
        let (span, events) = of(group);
        let flushed = flush::run(&self.pool, self.bound, &mut self.memory, wait, &events, None);
        let result = flushed.instrument(span).await;
        self.count(events.len(), result.as_ref().map(Vec::len).ok());
        result
    }

    async fn write_promptly(&mut self, group: &[Submission]) -> Result<Flushed, FlushError> {
        let (span, events) = of(group);
        let flushed = flush::run_promptly(&self.pool, self.bound, &mut self.memory, &events);
        let result = flushed.instrument(span).await;
        match &result {
            Ok(Flushed::Counted(outcomes)) => self.count(events.len(), Some(outcomes.len())),
            Ok(Flushed::Locked(_)) => {}
            Err(_) => self.count(events.len(), None),
        }
        result
    }

    fn count(&self, events: usize, counted: Option<usize>) {
        self.metrics.sizes.observe(events as f64);
        match counted {
            Some(events) => self.metrics.events.inc_by(events as u64),
            None => self.metrics.failures.inc(),
        };
    }
}

/// The events of a group, and the span of their flush.
fn of(group: &[Submission]) -> (tracing::Span, Vec<&Event>) {
    let events: Vec<&Event> = group.iter().flat_map(|s| &s.events).collect();
    let span = tracing::info_span!(parent: &group[0].span, "usage.flush", events = events.len());
    for other in &group[1..] {
        span.follows_from(&other.span);
    }
    (span, events)
}
