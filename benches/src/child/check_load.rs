use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use nexus_client::CallOptions;
use nexus_proto::usage::v1::{CheckQuotaRequest, usage_service_client::UsageServiceClient};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::{
    measure::{Latencies, Report},
    process::{self, TOKEN_VARIABLE},
    workload,
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
    accounts: u32,
    #[arg(long)]
    seconds: u64,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut callers = Vec::new();
    let options = CallOptions::bearer(&args.token, DEADLINE)?;
    let turn = Arc::new(AtomicU32::new(0));
    for _ in 0..args.connections {
        let channel = Endpoint::from_shared(args.url.clone())?.tcp_nodelay(true).connect().await?;
        for _ in 0..args.in_flight {
            callers.push(Caller {
                client: nexus_client::usage(channel.clone()),
                options: options.clone(),
                turn: turn.clone(),
                accounts: args.accounts,
            });
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

struct Caller {
    client: UsageServiceClient<Channel>,
    options: CallOptions,
    /// Whose turn it is, over all callers.
    turn: Arc<AtomicU32>,
    accounts: u32,
}

impl Caller {
    /// Calls one after the other; what ended in the measured time counts.
    async fn call(mut self, from: Instant, until: Instant) -> Result<(u64, Latencies)> {
        let (mut done, mut latencies) = (0, Latencies::new()?);
        loop {
            let number = self.turn.fetch_add(1, Ordering::Relaxed) % self.accounts;
            let request = CheckQuotaRequest { eco_id: workload::account(number), ..Default::default() };
            let started = Instant::now();
            self.client.check_quota(self.options.request(request)).await?;
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
