//! What analytics-svc tells of usage and revenue.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use nexus_proto::analytics::v1 as analytics;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{Backend, NO_ACCOUNT, answered, of_user, refused};
use crate::{auth::User, error::Error};

/// Of all accounts there always is an answer.
const NOTHING: &str = "Not found";

impl Backend {
    /// An account's usage by day.
    pub async fn history(
        &self,
        user: &User,
        eco_id: &str,
        days_count: i32,
    ) -> Result<analytics::GetUsageHistoryResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::GetUsageHistoryRequest { eco_id: eco_id.to_owned(), days_count };
        let send = |r| async move { client.get_usage_history(r).await };
        let answer = self.ask("AnalyticsService.GetUsageHistory", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// An account's busiest endpoints.
    pub async fn endpoints(
        &self,
        user: &User,
        request: analytics::ListEndpointStatsRequest,
    ) -> Result<analytics::ListEndpointStatsResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.list_endpoint_stats(r).await };
        let answer = self.ask("AnalyticsService.ListEndpointStats", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// What an account's period is expected to come to.
    pub async fn forecast(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<analytics::ForecastUsageResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::ForecastUsageRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.forecast_usage(r).await };
        let answer = self.ask("AnalyticsService.ForecastUsage", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// The business at a glance, for an admin.
    pub async fn overview(&self, admin: &User) -> Result<analytics::GetOverviewResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::GetOverviewRequest {};
        let send = |r| async move { client.get_overview(r).await };
        let answer = self.ask("AnalyticsService.GetOverview", admin, request, send).await;
        answer.map_err(refused(NOTHING))
    }

    /// Usage of all accounts by day, for an admin.
    pub async fn total_history(
        &self,
        admin: &User,
        days_count: i32,
    ) -> Result<analytics::GetTotalUsageHistoryResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::GetTotalUsageHistoryRequest { days_count };
        let send = |r| async move { client.get_total_usage_history(r).await };
        let answer = self.ask("AnalyticsService.GetTotalUsageHistory", admin, request, send).await;
        answer.map_err(refused(NOTHING))
    }

    /// A page of accounts, for an admin.
    pub async fn users(
        &self,
        admin: &User,
        request: analytics::ListUsersRequest,
    ) -> Result<analytics::ListUsersResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.list_users(r).await };
        let answer = self.ask("AnalyticsService.ListUsers", admin, request, send).await;
        answer.map_err(refused(NOTHING))
    }

    /// Revenue by month, for an admin.
    pub async fn revenue(
        &self,
        admin: &User,
        request: analytics::GetRevenueHistoryRequest,
    ) -> Result<analytics::GetRevenueHistoryResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.get_revenue_history(r).await };
        let answer = self.ask("AnalyticsService.GetRevenueHistory", admin, request, send).await;
        answer.map_err(refused(NOTHING))
    }

    /// An account's usage as rows, some at a time. Returns once the first are there, so that a refusal is no broken
    /// stream; later ones come as they are taken, each within the time of a call.
    pub async fn export(
        &self,
        user: &User,
        request: analytics::ExportUsageRequest,
    ) -> Result<impl Stream<Item = Result<Vec<analytics::UsageRow>, Error>> + use<>, Error> {
        let mut client = self.exports.clone();
        let send = |r| async move { client.export_usage(r).await };
        let refused = refused(NO_ACCOUNT);
        let request = of_user(user, self.timeout).map_err(refused)?.endless(request);
        let mut rows =
            answered("AnalyticsService.ExportUsage", request, self.timeout, send).await.map_err(refused)?;
        let patience = self.timeout;
        let first = next(&mut rows, patience).await.map_err(refused)?;
        let later = stream::try_unfold(rows, move |mut rows| async move {
            let some = next(&mut rows, patience).await.map_err(refused)?;
            Ok(some.map(|some| (some, rows)))
        });
        Ok(stream::iter(first.map(Ok)).chain(later))
    }
}

async fn next(
    rows: &mut Streaming<analytics::ExportUsageResponse>,
    patience: Duration,
) -> Result<Option<Vec<analytics::UsageRow>>, Status> {
    let message = timeout(patience, rows.message()).await;
    let message =
        message.unwrap_or_else(|_| Err(Status::deadline_exceeded("no rows within the deadline")))?;
    Ok(message.map(|message| message.rows))
}
