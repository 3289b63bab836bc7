use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{
        RateLimitRequest, rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
    },
};
use nexus_client::CallOptions;
use nexus_proto::usage::v1::{
    CheckQuotaRequest, GetCurrentUsageRequest, usage_service_client::UsageServiceClient,
};
use tonic::transport::Channel;

use super::{
    answered,
    callers::{Caller, at_work, joined, measured, on_connections},
};
use crate::{
    measure::Report,
    process::{self, TOKEN_VARIABLE},
    workload,
};

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    url: String,
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    token: String,
    #[arg(long)]
    rpc: Rpc,
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    in_flight: u32,
    #[arg(long)]
    accounts: u32,
    /// How long; without it, each account is asked for once
    #[arg(long)]
    seconds: Option<u64>,
}

/// What is called.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Rpc {
    CheckQuota,
    GetCurrentUsage,
    ShouldRateLimit,
}

impl Rpc {
    /// The word on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Rpc::CheckQuota => "check-quota",
            Rpc::GetCurrentUsage => "get-current-usage",
            Rpc::ShouldRateLimit => "should-rate-limit",
        }
    }
}

pub(super) async fn run(args: Args) -> Result<()> {
    let options = CallOptions::bearer(&args.token, DEADLINE)?;
    let turn = Arc::new(AtomicU32::new(0));
    let callers = on_connections(&args.url, args.connections, args.in_flight, |channel| Checker {
        client: Client::new(args.rpc, channel),
        options: options.clone(),
        turn: turn.clone(),
        accounts: args.accounts,
        once: args.seconds.is_none(),
    });
    let callers = callers.await?;
    let Some(seconds) = args.seconds else {
        let started = Instant::now();
        let (done, latencies) = joined(at_work(callers, started, None)).await?;
        return process::report(&Report::new(done, started.elapsed(), &latencies));
    };
    process::report(&measured(callers, Duration::from_secs(seconds)).await?)
}

/// A client of either service.
enum Client {
    Checks(UsageServiceClient<Channel>),
    Reads(UsageServiceClient<Channel>),
    RateLimit(RateLimitServiceClient<Channel>),
}

impl Client {
    fn new(rpc: Rpc, channel: Channel) -> Self {
        match rpc {
            Rpc::CheckQuota => Self::Checks(nexus_client::usage(channel)),
            Rpc::GetCurrentUsage => Self::Reads(nexus_client::usage(channel)),
            Rpc::ShouldRateLimit => Self::RateLimit(RateLimitServiceClient::new(channel)),
        }
    }

    /// Asks for a unit of an account, or where it stands; fails unless it is admitted.
    async fn ask(&mut self, options: &CallOptions, account: String) -> Result<()> {
        match self {
            Self::Checks(client) => {
                let message = CheckQuotaRequest { eco_id: account, ..Default::default() };
                answered(|| {
                    let (mut client, request) = (client.clone(), options.request(message.clone()));
                    async move { client.check_quota(request).await }
                })
                .await?;
            }
            Self::Reads(client) => {
                let message = GetCurrentUsageRequest { eco_id: account };
                answered(|| {
                    let (mut client, request) = (client.clone(), options.request(message.clone()));
                    async move { client.get_current_usage(request).await }
                })
                .await?;
            }
            Self::RateLimit(client) => {
                let answer = client.should_rate_limit(options.request(about(account))).await?.into_inner();
                ensure!(answer.overall_code() == Code::Ok, "a call was refused: {answer:?}");
            }
        }
        Ok(())
    }
}

/// As Envoy asks.
pub(crate) fn about(account: String) -> RateLimitRequest {
    let entries = vec![Entry { key: "account".to_owned(), value: account }];
    let descriptor = RateLimitDescriptor { entries, ..Default::default() };
    RateLimitRequest { domain: "nexus".to_owned(), descriptors: vec![descriptor], hits_addend: 0 }
}

pub(super) struct Checker {
    client: Client,
    options: CallOptions,
    /// Whose turn it is, over all callers.
    turn: Arc<AtomicU32>,
    accounts: u32,
    /// Whether each account has one turn.
    once: bool,
}

impl Checker {
    /// Of CheckQuota, again and again.
    pub(super) fn of_checks(
        channel: Channel,
        options: CallOptions,
        turn: Arc<AtomicU32>,
        accounts: u32,
    ) -> Self {
        Self { client: Client::new(Rpc::CheckQuota, channel), options, turn, accounts, once: false }
    }
}

impl Caller for Checker {
    type Asked = String;

    fn next(&mut self) -> Option<String> {
        let number = self.turn.fetch_add(1, Ordering::Relaxed);
        (!self.once || number < self.accounts).then(|| workload::account(number % self.accounts))
    }

    async fn call(&mut self, account: String) -> Result<()> {
        self.client.ask(&self.options, account).await
    }
}
