use std::{
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nexus_client::CallOptions;
use nexus_proto::usage::v1::BatchRecordUsageRequest;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use super::{
    answered,
    callers::{Calls, at_work, joined},
    check_load::Checker,
    connect,
    record_load::{Recorder, usage_event},
};
use crate::{
    measure::{Latencies, Report},
    process::{self, TOKEN_VARIABLE},
    workload::{Shape, Workload},
};

const DEADLINE: Duration = Duration::from_secs(60);
const ROUTES: u32 = 20;
/// As many as a request may have.
const BATCH: usize = 10_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    url: String,
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    token: String,
    #[arg(long)]
    shape: Shape,
    /// Batches in flight, each on a connection of its own
    #[arg(long)]
    batches: u32,
    /// Unary records in flight, on one connection
    #[arg(long)]
    records: u32,
    /// Checks in flight, on one connection
    #[arg(long)]
    checks: u32,
    #[arg(long)]
    seconds: u64,
}

/// What a load generator sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Soaked {
    /// Of batches, events are counted.
    pub(crate) batches: Report,
    pub(crate) records: Report,
    pub(crate) checks: Report,
    /// Events that were acknowledged.
    pub(crate) all_events: u64,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let options = CallOptions::bearer(&args.token, DEADLINE)?;
    let (from, took) = (Instant::now(), Duration::from_secs(args.seconds));
    let until = from + took;
    let mut batches = Calls::new();
    for n in 0..args.batches {
        let workload = Workload::seeded(args.shape, ROUTES, u64::from(n));
        batches.spawn(send_batches(connect(&args.url).await?, options.clone(), workload, until));
    }
    let channel = connect(&args.url).await?;
    let records = (0..args.records).map(|n| {
        let workload = Workload::seeded(args.shape, ROUTES, u64::from(args.batches + n));
        Recorder::new(channel.clone(), options.clone(), workload)
    });
    let records = at_work(records, from, Some(until));
    let (channel, turn) = (connect(&args.url).await?, Arc::new(AtomicU32::new(0)));
    let checks = (0..args.checks)
        .map(|_| Checker::of_checks(channel.clone(), options.clone(), turn.clone(), args.shape.accounts));
    let checks = at_work(checks, from, Some(until));
    let (batches, batched) = reported(batches, took).await?;
    let (records, recorded) = reported(records, took).await?;
    let (checks, _) = reported(checks, took).await?;
    // The call in which each of them saw the end was acknowledged as well.
    let last = u64::from(args.records);
    process::report(&Soaked { batches, records, checks, all_events: batched + recorded + last })
}

async fn reported(calls: Calls, took: Duration) -> Result<(Report, u64)> {
    let (done, latencies) = joined(calls).await?;
    Ok((Report::new(done, took, &latencies), done))
}

/// Sends one batch after the other, each made when it is sent, and counts the events.
async fn send_batches(
    channel: Channel,
    options: CallOptions,
    mut workload: Workload,
    until: Instant,
) -> Result<(u64, Latencies)> {
    let client = nexus_client::usage(channel);
    let (mut done, mut latencies) = (0, Latencies::new()?);
    while Instant::now() < until {
        let events = (0..BATCH).map(|_| usage_event(workload.event())).collect();
        let message = BatchRecordUsageRequest { events };
        let started = Instant::now();
        let answer = answered(|| {
            let (mut client, request) = (client.clone(), options.request(message.clone()));
            async move { client.batch_record_usage(request).await }
        })
        .await?;
        latencies.record(started.elapsed())?;
        // Repeats, where a call was made again.
        let counted = answer.accepted_count + answer.duplicate_count;
        ensure!(usize::try_from(counted)? == BATCH, "of a batch were counted {answer:?}");
        done += BATCH as u64;
    }
    Ok((done, latencies))
}
