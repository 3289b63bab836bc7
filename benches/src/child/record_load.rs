use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nexus_client::CallOptions;
use nexus_proto::usage::v1::{
    EventOutcome, RecordUsageRequest, UsageEvent, usage_service_client::UsageServiceClient,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{answered, connect};
use crate::{
    measure::{Latencies, Report},
    process::{self, TOKEN_VARIABLE},
    workload::{Event, Shape, Workload},
};

const WARM_UP: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    url: String,
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    token: String,
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    in_flight: u32,
    #[arg(long)]
    shape: Shape,
    #[arg(long)]
    seconds: u64,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let options = CallOptions::bearer(&args.token, DEADLINE)?;
    let mut callers = Vec::new();
    for _ in 0..args.connections {
        let channel = connect(&args.url).await?;
        for _ in 0..args.in_flight {
            let workload = Workload::seeded(args.shape, 20, callers.len() as u64);
            callers.push(Caller::new(channel.clone(), options.clone(), workload));
        }
    }
    let from = Instant::now() + WARM_UP;
    let until = from + Duration::from_secs(args.seconds);
    let calls: JoinSet<Result<(u64, Latencies)>> =
        callers.into_iter().map(|caller| caller.call(from, until)).collect();
    let (mut done, mut latencies) = (0, Latencies::new()?);
    for called in calls.join_all().await {
        let (calls, times) = called?;
        done += calls;
        latencies.merge(&times)?;
    }
    process::report(&Report::new(done, until - from, &latencies))
}

/// An event as a client sends it.
pub(super) fn usage_event(event: Event) -> UsageEvent {
    UsageEvent {
        eco_id: event.eco_id,
        event_id: event.event_id.to_string(),
        event_time: Some(nexus_kit::convert::timestamp(event.event_time)),
        endpoint: event.endpoint,
        method: "GET".to_owned(),
        status_code: event.status_code.into(),
        response_time_ms: event.response_time_ms,
        ..Default::default()
    }
}

pub(super) struct Caller {
    client: UsageServiceClient<Channel>,
    options: CallOptions,
    workload: Workload,
}

impl Caller {
    pub(super) fn new(channel: Channel, options: CallOptions, workload: Workload) -> Self {
        Self { client: nexus_client::usage(channel), options, workload }
    }

    /// Calls one after the other; what ended in the measured time counts.
    pub(super) async fn call(mut self, from: Instant, until: Instant) -> Result<(u64, Latencies)> {
        let (mut done, mut latencies) = (0, Latencies::new()?);
        loop {
            let message = RecordUsageRequest { event: Some(usage_event(self.workload.event())) };
            let started = Instant::now();
            let answer = answered(|| {
                let (mut client, request) = (self.client.clone(), self.options.request(message.clone()));
                async move { client.record_usage(request).await }
            })
            .await?;
            // A repeat, where the call was made again.
            let is_counted = matches!(answer.outcome(), EventOutcome::Accepted | EventOutcome::Duplicate);
            ensure!(is_counted, "an event was not counted: {answer:?}");
            let ended = Instant::now();
            if ended >= until {
                return Ok((done, latencies));
            }
            if ended >= from {
                done += 1;
                latencies.record(ended - started)?;
            }
        }
    }
}
