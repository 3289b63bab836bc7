use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nexus_client::CallOptions;
use nexus_proto::analytics::v1::{
    ForecastUsageRequest, GetOverviewRequest, GetRevenueHistoryRequest, GetUsageHistoryRequest,
    ListEndpointStatsRequest, ListTopUsersRequest, ListUsersRequest, UserSort,
    analytics_service_client::AnalyticsServiceClient,
};
use tokio::task::JoinSet;
use tonic::{Response, Status, transport::Channel};

use super::{answered, connect};
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
    #[command(subcommand)]
    read: Read,
}

/// What is read.
#[derive(Clone, clap::Subcommand)]
enum Read {
    Overview,
    Revenue,
    TopUsers,
    /// A page of the list of accounts
    Users {
        #[arg(long, value_parser = sort)]
        sort: UserSort,
        #[arg(long)]
        skip: i32,
        #[arg(long, default_value = "")]
        query: String,
    },
    /// Of the accounts in turn
    History,
    Endpoints,
    Forecast,
}

/// By the contract's name.
fn sort(name: &str) -> Result<UserSort, String> {
    UserSort::from_str_name(name).ok_or_else(|| format!("{name} is no order"))
}

pub(super) async fn run(args: Args) -> Result<()> {
    let options = CallOptions::bearer(&args.token, DEADLINE)?;
    let turn = Arc::new(AtomicU32::new(0));
    let from = Instant::now() + WARM_UP;
    let until = from + Duration::from_secs(args.seconds);
    let mut calls = JoinSet::<Result<(u64, Latencies)>>::new();
    for _ in 0..args.connections {
        let channel = connect(&args.url).await?;
        for _ in 0..args.in_flight {
            let (client, options) = (nexus_client::analytics(channel.clone()), options.clone());
            let reader = Reader {
                client,
                options,
                read: args.read.clone(),
                turn: turn.clone(),
                accounts: args.accounts,
            };
            calls.spawn(reader.call(from, until));
        }
    }
    let (mut done, mut latencies) = (0, Latencies::new()?);
    for called in calls.join_all().await {
        let (calls, times) = called?;
        done += calls;
        latencies.merge(&times)?;
    }
    process::report(&Report::new(done, until - from, &latencies))
}

struct Reader {
    client: AnalyticsServiceClient<Channel>,
    options: CallOptions,
    read: Read,
    /// Whose turn it is, over all readers.
    turn: Arc<AtomicU32>,
    accounts: u32,
}

impl Reader {
    /// Calls one after the other; what ended in the measured time counts.
    async fn call(self, from: Instant, until: Instant) -> Result<(u64, Latencies)> {
        let (mut done, mut latencies) = (0, Latencies::new()?);
        loop {
            let started = Instant::now();
            let rows = self.ask().await.context("a call")?;
            ensure!(rows > 0, "an empty answer is no answer to measure");
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

    /// Returns how many rows, days or figures there were.
    async fn ask(&self) -> Result<usize> {
        let eco_id = workload::account(self.turn.fetch_add(1, Ordering::Relaxed) % self.accounts);
        Ok(match &self.read {
            Read::Overview => {
                let answer =
                    self.one(GetOverviewRequest {}, |mut c, r| async move { c.get_overview(r).await });
                usize::try_from(answer.await?.total_users_count)?
            }
            Read::Revenue => {
                let request = GetRevenueHistoryRequest::default();
                let answer = self.one(request, |mut c, r| async move { c.get_revenue_history(r).await });
                answer.await?.months.len()
            }
            Read::TopUsers => {
                let request = ListTopUsersRequest { page_size: 100, ..Default::default() };
                let answer = self.one(request, |mut c, r| async move { c.list_top_users(r).await });
                answer.await?.users.len()
            }
            Read::Users { sort, skip, query } => {
                let request = ListUsersRequest {
                    sort: (*sort).into(),
                    skip_count: *skip,
                    query: query.clone(),
                    ..Default::default()
                };
                let answer = self.one(request, |mut c, r| async move { c.list_users(r).await });
                answer.await?.users.len()
            }
            Read::History => {
                let request = GetUsageHistoryRequest { eco_id, days_count: 30 };
                let answer = self.one(request, |mut c, r| async move { c.get_usage_history(r).await });
                answer.await?.days.len()
            }
            Read::Endpoints => {
                let request = ListEndpointStatsRequest { eco_id, days_count: 30, ..Default::default() };
                let answer = self.one(request, |mut c, r| async move { c.list_endpoint_stats(r).await });
                answer.await?.endpoints.len()
            }
            Read::Forecast => {
                let request = ForecastUsageRequest { eco_id };
                let answer = self.one(request, |mut c, r| async move { c.forecast_usage(r).await });
                usize::try_from(answer.await?.expected_count)?
            }
        })
    }

    async fn one<M, T, F>(
        &self,
        message: M,
        call: impl Fn(AnalyticsServiceClient<Channel>, tonic::Request<M>) -> F,
    ) -> Result<T>
    where
        M: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        answered(|| call(self.client.clone(), self.options.request(message.clone()))).await
    }
}
