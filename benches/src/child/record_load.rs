use std::time::Duration;

use anyhow::{Result, ensure};
use nexus_client::CallOptions;
use nexus_proto::usage::v1::{
    EventOutcome, RecordUsageRequest, UsageEvent, usage_service_client::UsageServiceClient,
};
use tonic::transport::Channel;

use super::{
    answered,
    callers::{Caller, measured, on_connections},
};
use crate::{
    process::{self, TOKEN_VARIABLE},
    workload::{Event, Shape, Workload},
};

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
    let mut number = 0;
    let callers = on_connections(&args.url, args.connections, args.in_flight, |channel| {
        let workload = Workload::seeded(args.shape, 20, number);
        number += 1;
        Recorder::new(channel, options.clone(), workload)
    });
    process::report(&measured(callers.await?, Duration::from_secs(args.seconds)).await?)
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

pub(super) struct Recorder {
    client: UsageServiceClient<Channel>,
    options: CallOptions,
    workload: Workload,
}

impl Recorder {
    pub(super) fn new(channel: Channel, options: CallOptions, workload: Workload) -> Self {
        Self { client: nexus_client::usage(channel), options, workload }
    }
}

impl Caller for Recorder {
    type Asked = RecordUsageRequest;

    fn next(&mut self) -> Option<RecordUsageRequest> {
        Some(RecordUsageRequest { event: Some(usage_event(self.workload.event())) })
    }

    async fn call(&mut self, message: RecordUsageRequest) -> Result<()> {
        let answer = answered(|| {
            let (mut client, request) = (self.client.clone(), self.options.request(message.clone()));
            async move { client.record_usage(request).await }
        })
        .await?;
        // A repeat, where the call was made again.
        let is_counted = matches!(answer.outcome(), EventOutcome::Accepted | EventOutcome::Duplicate);
        ensure!(is_counted, "an event was not counted: {answer:?}");
        Ok(())
    }
}
