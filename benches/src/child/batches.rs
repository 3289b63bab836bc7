use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    measure::{Latencies, Report},
    workload::{Event, Shape, Workload},
};

#[derive(clap::Args)]
pub(super) struct WorkloadArgs {
    #[arg(long)]
    events: u32,
    #[arg(long)]
    batch: u32,
    #[arg(long)]
    shape: Shape,
    #[arg(long)]
    routes: u32,
    #[arg(long)]
    connections: u32,
}

/// What a load generator sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) report: Report,
    /// Events that were acknowledged, those of the warming up included.
    pub(crate) all_events: u64,
}

/// One connection to whatever takes batches.
pub(super) trait Sender: Send + 'static {
    /// Sends a batch and waits until it is committed; fails unless all of it was taken.
    fn send(&mut self, batch: Batch) -> impl Future<Output = Result<()>> + Send;
}

/// A batch, ready to be sent.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) events: u32,
    pub(super) encoded: Bytes,
}

/// Encodes all batches before the clock starts, so that the generator costs little while it runs: about 150
/// bytes an event. The first batch of each connection warms up and does not count.
pub(super) async fn run<S: Sender>(
    args: &WorkloadArgs,
    senders: Vec<S>,
    encode: impl Fn(Vec<Event>) -> Bytes,
) -> Result<Loaded> {
    let mut workload = Workload::new(args.shape, args.routes);
    let mut make =
        |events: u32| Batch { events, encoded: encode((0..events).map(|_| workload.event()).collect()) };
    let warm_up: Vec<_> = senders.iter().map(|_| make(args.batch)).collect();
    let whole = (0..args.events / args.batch).map(|_| args.batch);
    let rest = Some(args.events % args.batch).filter(|rest| *rest > 0);
    let batches: Arc<Vec<_>> = Arc::new(whole.chain(rest).map(&mut make).collect());

    let mut warming = JoinSet::new();
    for (mut sender, batch) in senders.into_iter().zip(warm_up) {
        warming.spawn(async move { sender.send(batch).await.map(|()| sender) });
    }
    let warm: Vec<S> = warming.join_all().await.into_iter().collect::<Result<_>>().context("warming up")?;
    let warm_up_events = u64::from(args.batch) * warm.len() as u64;

    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let sending: JoinSet<Result<Latencies>> =
        warm.into_iter().map(|sender| send_all(sender, batches.clone(), next.clone())).collect();
    let mut latencies = Latencies::new()?;
    for sent in sending.join_all().await {
        latencies.merge(&sent?)?;
    }
    let report = Report::new(u64::from(args.events), started.elapsed(), &latencies);
    Ok(Loaded { report, all_events: u64::from(args.events) + warm_up_events })
}

/// Takes the next batch, whoever's turn it is, until there is none.
async fn send_all<S: Sender>(
    mut sender: S,
    batches: Arc<Vec<Batch>>,
    next: Arc<AtomicUsize>,
) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
        let started = Instant::now();
        sender.send(batch.clone()).await?;
        latencies.record(started.elapsed())?;
    }
    Ok(latencies)
}

impl WorkloadArgs {
    pub(super) fn connections(&self) -> u32 {
        self.connections
    }
}
