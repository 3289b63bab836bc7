//! Callers of a load generator: many at once, each making one call after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::connect;
use crate::measure::{Latencies, Report};

/// Before what is measured.
pub(super) const WARM_UP: Duration = Duration::from_secs(1);

/// One of them.
pub(super) trait Caller: Send + 'static {
    /// What it asks for.
    type Asked: Send;

    /// What is to be asked for next; none: all is asked for.
    fn next(&mut self) -> Option<Self::Asked>;

    /// One call, which fails unless it was answered as it should be.
    fn call(&mut self, asked: Self::Asked) -> impl Future<Output = Result<()>> + Send;
}

/// Callers at work: how many calls of each ended in the measured time, and how long they took.
pub(super) type Calls = JoinSet<Result<(u64, Latencies)>>;

/// As many callers on each of so many connections.
pub(super) async fn on_connections<C>(
    url: &str,
    connections: u32,
    in_flight: u32,
    mut caller: impl FnMut(Channel) -> C,
) -> Result<Vec<C>> {
    let mut callers = Vec::new();
    for _ in 0..connections {
        let channel = connect(url).await?;
        callers.extend((0..in_flight).map(|_| caller(channel.clone())));
    }
    Ok(callers)
}

/// Starts them all; what ends from `from` on and before `until` counts. Without an end they go on until all is asked for.
pub(super) fn at_work<C: Caller>(
    callers: impl IntoIterator<Item = C>,
    from: Instant,
    until: Option<Instant>,
) -> Calls {
    callers.into_iter().map(|caller| one_after_the_other(caller, from, until)).collect()
}

/// Waits for them all.
pub(super) async fn joined(calls: Calls) -> Result<(u64, Latencies)> {
    let (mut done, mut latencies) = (0, Latencies::new()?);
    for called in calls.join_all().await {
        let (calls, times) = called?;
        done += calls;
        latencies.merge(&times)?;
    }
    Ok((done, latencies))
}

/// Measures for some time after a warm-up.
pub(super) async fn measured<C: Caller>(callers: Vec<C>, took: Duration) -> Result<Report> {
    let from = Instant::now() + WARM_UP;
    let (done, latencies) = joined(at_work(callers, from, Some(from + took))).await?;
    Ok(Report::new(done, took, &latencies))
}

async fn one_after_the_other<C: Caller>(
    mut caller: C,
    from: Instant,
    until: Option<Instant>,
) -> Result<(u64, Latencies)> {
    let (mut done, mut latencies) = (0, Latencies::new()?);
    while let Some(asked) = caller.next() {
        let started = Instant::now();
        caller.call(asked).await.context("a call")?;
        let ended = Instant::now();
        if until.is_some_and(|until| ended >= until) {
            break;
        }
        if ended >= from {
            done += 1;
            latencies.record(ended - started)?;
        }
    }
    Ok((done, latencies))
}
