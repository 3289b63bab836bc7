//! The tasks that write, each the accounts that are its own. While a flush commits, the next one gathers: group
//! commit without a linger, so that a lone event waits for nobody and a crowd shares the cost.

use std::time::Duration;

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

/// Starts so many writers. `pool` is their own, with a connection for each, so that reads never keep them
/// waiting for one; `bound` is the longest time of one try; `capacity` the events that may wait for all of them
/// together. With a spool, events go there while the database is away. After `stop` they write what is queued and end.
pub fn start(
    pool: &PgPool,
    writers: u32,
    bound: Duration,
    capacity: usize,
    metrics: &WriterMetrics,
    spooling: Option<&Spooling>,
    stop: &CancellationToken,
) -> (Recorder, JoinHandle<()>) {
    let (recorder, queues) = Recorder::new(writers as usize, capacity);
    let mut tasks = JoinSet::new();
    for queue in queues {
        let (pool, metrics, spooling) = (pool.clone(), metrics.clone(), spooling.cloned());
        let memory = Memory::new(spooling.as_ref().map(|spooling| spooling.known().clone()));
        let writer = Writer { pool, bound, queue, next: None, memory, metrics, spooling };
        tasks.spawn(writer.run(stop.clone()));
    }
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

    /// Writes a group and answers each of its calls. Where the group fails by a fault of ours, each call is
    /// written alone, so that one that cannot be written does not fail the others.
    async fn flush(&mut self, group: Vec<Submission>) {
        if let Some(spooling) = self.spooling.as_ref().filter(|spooling| spooling.is_away()) {
            return spooling.keep(group).await;
        }
        let result = self.write(&group).await;
        if matches!(result, Err(FlushError::Failed | FlushError::Rejected)) && group.len() > 1 {
            for alone in group {
                let result = self.write(std::slice::from_ref(&alone)).await;
                self.finish(vec![alone], result).await;
            }
        } else {
            self.finish(group, result).await;
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

    async fn write(&mut self, group: &[Submission]) -> Result<Vec<Outcome>, FlushError> {
        let events: Vec<&Event> = group.iter().flat_map(|s| &s.events).collect();
        let span = tracing::info_span!(parent: &group[0].span, "usage.flush", events = events.len());
        for other in &group[1..] {
            span.follows_from(&other.span);
        }
        let result =
            flush::run(&self.pool, self.bound, &mut self.memory, &events, None).instrument(span).await;
        self.metrics.sizes.observe(events.len() as f64);
        match &result {
            Ok(outcomes) => self.metrics.events.inc_by(outcomes.len() as u64),
            Err(_) => self.metrics.failures.inc(),
        };
        result
    }
}
