//! A client that leaves delivery to the Tracker of nexus-client, with a disk buffer. A killed process leaves
//! events there; the next one delivers them, and tracks what its journal has without an answer again: which of
//! those were on disk it cannot know, so that many are sent by both, under the same ids.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream::FuturesUnordered};
use nexus_client::{
    Credentials, Tracker,
    tracker::{Report, stats::Stats},
};
use rand::Rng;
use tokio::sync::watch;

use super::{
    Args,
    journal::{Entry, Journal, answered},
    workload::{Call, series},
};

/// Calls that wait for their outcome at most.
const WAITING: usize = 50;
/// Longest time that a shutdown may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Size of the disk buffer: more than ever waits.
const BUFFER_BYTES: u64 = 16 * 1024 * 1024;

/// Tracks what is `left` of the process before, then makes new calls until `finishing`.
pub(super) async fn run(
    args: &Args,
    process: u32,
    journal: Journal,
    left: Vec<Call>,
    finishing: watch::Receiver<bool>,
) -> Result<()> {
    let tracker = build(args).await?;
    journal.note(&[Entry::Begin { recovered: tracker.stats().recovered }])?;
    let mut rng = series(args.seed, args.number, process, 0);
    let mut deliveries = FuturesUnordered::new();
    let mut next = left;
    loop {
        for call in next {
            let delivery = tracker.reserve().context("the queue holds more than waits")?.track(call.event());
            deliveries.push(async move { (call.id, delivery.outcome().await) });
        }
        let finishes = *finishing.borrow();
        while deliveries.len() >= if finishes { 1 } else { WAITING } {
            let (id, outcome) = deliveries.next().await.context("some are waited for")?;
            journal.note(&[answered(id, outcome.context("the tracker ended")?, "")])?;
        }
        if finishes {
            break;
        }
        next = (0..rng.random_range(1..=10)).map(|_| Call::random(&mut rng)).collect();
        journal.note(&next.iter().cloned().map(Entry::Sent).collect::<Vec<_>>())?;
    }
    let report = tracker.shutdown(DEADLINE).await;
    let violations: Vec<Entry> = broken(&report).into_iter().map(Entry::Violation).collect();
    journal.note(&violations)
}

async fn build(args: &Args) -> Result<Tracker> {
    let (first, others) = args.replicas.split_first().context("there is a replica")?;
    let builder = Tracker::builder(first, Credentials::bearer(&args.token));
    let builder = others.iter().fold(builder, |builder, url| builder.replica(url));
    let file = args.folder.join(format!("client-{}.redb", args.number));
    let builder = builder
        .disk_buffer(file, BUFFER_BYTES)
        .flush_records(20)
        .flush_interval(Duration::from_millis(20))
        .call_timeout(Duration::from_secs(2))
        .backoff(Duration::from_millis(20), Duration::from_millis(500));
    Ok(builder.build().await?)
}

/// What does not hold of a tracker that was shut down with nothing left to do.
fn broken(report: &Report) -> Option<String> {
    let Stats { tracked, recovered, accepted, duplicates, refused, .. } = report.stats;
    let is_whole = tracked + recovered == accepted + duplicates + refused.total();
    let is_empty = report.undelivered == 0 && report.on_disk == 0 && report.stats.lost() == 0;
    (!is_whole || !is_empty).then(|| format!("a tracker has lost count of its events: {report:?}"))
}
