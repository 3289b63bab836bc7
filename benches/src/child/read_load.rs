use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use nexus_client::CallOptions;
use nexus_proto::analytics::v1::{
    ForecastUsageRequest, GetOverviewRequest, GetRevenueHistoryRequest, GetTotalUsageHistoryRequest,
    GetUsageHistoryRequest, ListEndpointStatsRequest, ListTopUsersRequest, ListUsersRequest, UserSort,
    analytics_service_client::AnalyticsServiceClient,
};
use tonic::{Response, Status, transport::Channel};

use super::{
    answered,
    callers::{Caller, measured, on_connections},
};
use crate::{
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
    TotalHistory,
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
    let callers = on_connections(&args.url, args.connections, args.in_flight, |channel| Reader {
        client: nexus_client::analytics(channel),
        options: options.clone(),
        read: args.read.clone(),
        turn: turn.clone(),
        accounts: args.accounts,
    });
    process::report(&measured(callers.await?, Duration::from_secs(args.seconds)).await?)
}

struct Reader {
    client: AnalyticsServiceClient<Channel>,
    options: CallOptions,
    read: Read,
    /// Whose turn it is, over all readers.
    turn: Arc<AtomicU32>,
    accounts: u32,
}

impl Caller for Reader {
    type Asked = String;

    fn next(&mut self) -> Option<String> {
        Some(workload::account(self.turn.fetch_add(1, Ordering::Relaxed) % self.accounts))
    }

    async fn call(&mut self, eco_id: String) -> Result<()> {
        let rows = self.ask(eco_id).await?;
        ensure!(rows > 0, "an empty answer is no answer to measure");
        Ok(())
    }
}

impl Reader {
    /// Returns how many rows, days or figures there were.
    async fn ask(&self, eco_id: String) -> Result<usize> {
        Ok(match &self.read {
            Read::Overview => {
                let answer =
                    self.one(GetOverviewRequest {}, |mut c, r| async move { c.get_overview(r).await });
                usize::try_from(answer.await?.total_users_count)?
            }
            Read::TotalHistory => {
                let request = GetTotalUsageHistoryRequest { days_count: 90 };
                let answer = self.one(request, |mut c, r| async move { c.get_total_usage_history(r).await });
                answer.await?.days.len()
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
