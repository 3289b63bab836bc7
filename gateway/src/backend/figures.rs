//! What is to come of usage, what was of revenue, and usage as rows.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use nexus_proto::analytics::v1 as analytics;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{Backend, answered, call};
use crate::{
    auth::User,
    error::Error,
    status::{self, Credentials},
};

impl Backend {
    /// What a user's period is expected to come to.
    pub async fn forecast(&self, user: &User) -> Result<analytics::ForecastUsageResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.forecast_usage(r).await };
        let request = analytics::ForecastUsageRequest::default();
        call("AnalyticsService.ForecastUsage", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Revenue by month, for an admin.
    pub async fn revenue(
        &self,
        admin: &User,
        request: analytics::GetRevenueHistoryRequest,
    ) -> Result<analytics::GetRevenueHistoryResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.get_revenue_history(r).await };
        call("AnalyticsService.GetRevenueHistory", self.user(admin)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Not found"))
    }

    /// A user's usage as rows, some at a time. Returns once the first are there, so that a refusal is no broken
    /// stream; later ones come as they are taken, each within the time of a call.
    pub async fn export(
        &self,
        user: &User,
        request: analytics::ExportUsageRequest,
    ) -> Result<impl Stream<Item = Result<Vec<analytics::UsageRow>, Error>> + use<>, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.export_usage(r).await };
        let request = self.user(user)?.endless(request);
        let refused = |s| status::rest(&s, Credentials::User, "Account not found");
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
