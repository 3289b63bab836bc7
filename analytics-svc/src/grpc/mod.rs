//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.
//!
//! | module | what it does |
//! |---|---|
//! | `parse` | requests into the domain's types, all violations at once |
//! | `answer` | the domain's types into responses |
//! | `export` | an export as a stream that is read page by page |

mod answer;
mod export;
mod parse;

use nexus_kit::{auth::Caller, page, serve::MAX_REQUEST_BYTES, turn::Turns};
use nexus_proto::analytics::v1::{
    analytics_service_server::{AnalyticsService, AnalyticsServiceServer},
    *,
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, codec::CompressionEncoding};

use crate::{
    app::{
        export_usage::Export, forecast_usage, get_overview, get_revenue_history, get_total_usage_history,
        get_usage_history, list_endpoint_stats, list_top_users, list_users,
    },
    error::Error,
};

/// The service.
pub struct Service {
    /// Connections that act as the service's role.
    pub pool: PgPool,
    /// Turns of accounts, as unary calls have them: a page of an export takes one.
    pub turns: Turns,
    /// Ends streams.
    pub stop: CancellationToken,
}

/// The tonic server: message sizes bounded, compressed requests accepted.
pub fn server(service: Service) -> AnalyticsServiceServer<Service> {
    AnalyticsServiceServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

#[tonic::async_trait]
impl AnalyticsService for Service {
    async fn get_usage_history(
        &self,
        request: Request<GetUsageHistoryRequest>,
    ) -> Result<Response<GetUsageHistoryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (eco_id, days) = parse::usage_history(&caller, request.get_ref())?;
        let history = get_usage_history::run(&self.pool, &eco_id, days).await?;
        Ok(Response::new(answer::usage_history(history, days)))
    }

    async fn list_endpoint_stats(
        &self,
        request: Request<ListEndpointStatsRequest>,
    ) -> Result<Response<ListEndpointStatsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (filter, after, size) = parse::endpoint_stats(&caller, request.get_ref())?;
        let (endpoints, next) = list_endpoint_stats::run(&self.pool, &filter, after.as_ref(), size).await?;
        let next = next.map(|cursor| page::encode(&filter, &cursor));
        Ok(Response::new(answer::endpoint_stats(endpoints, filter.days, next)))
    }

    async fn get_overview(
        &self,
        request: Request<GetOverviewRequest>,
    ) -> Result<Response<GetOverviewResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[])?;
        let overview = get_overview::run(&self.pool).await?;
        Ok(Response::new(answer::overview(overview)))
    }

    async fn get_total_usage_history(
        &self,
        request: Request<GetTotalUsageHistoryRequest>,
    ) -> Result<Response<GetTotalUsageHistoryResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[])?;
        let days = parse::total_usage_history(request.get_ref()).map_err(Error::Invalid)?;
        let history = get_total_usage_history::run(&self.pool, days).await?;
        Ok(Response::new(answer::total_usage_history(history, days)))
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[])?;
        let (filter, start, size) = parse::users(request.get_ref()).map_err(Error::Invalid)?;
        let found = list_users::run(&self.pool, &filter, &start, size).await?;
        let next = found.next.map(|cursor| page::encode(&filter, &cursor));
        Ok(Response::new(answer::users(found.users, found.total, next)))
    }

    async fn list_top_users(
        &self,
        request: Request<ListTopUsersRequest>,
    ) -> Result<Response<ListTopUsersResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[])?;
        let (after, size) = parse::top_users(request.get_ref()).map_err(Error::Invalid)?;
        let (users, next) = list_top_users::run(&self.pool, after.as_ref(), size).await?;
        let next = next.map(|cursor| page::encode(&parse::TOP_USERS, &cursor));
        Ok(Response::new(answer::top_users(users, next)))
    }

    async fn get_revenue_history(
        &self,
        request: Request<GetRevenueHistoryRequest>,
    ) -> Result<Response<GetRevenueHistoryResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[])?;
        let (months, currency) = parse::revenue_history(request.get_ref()).map_err(Error::Invalid)?;
        let revenue = get_revenue_history::run(&self.pool, months, currency).await?;
        Ok(Response::new(answer::revenue_history(revenue)))
    }

    async fn forecast_usage(
        &self,
        request: Request<ForecastUsageRequest>,
    ) -> Result<Response<ForecastUsageResponse>, Status> {
        let eco_id = Caller::of(&request)?.account(&request.get_ref().eco_id, &[])?;
        let (standing, forecast) = forecast_usage::run(&self.pool, &eco_id).await?;
        Ok(Response::new(answer::forecast(&standing, &forecast)))
    }

    type ExportUsageStream = export::Pages;

    async fn export_usage(
        &self,
        request: Request<ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        let caller = Caller::of(&request)?;
        let range = parse::export(&caller, request.get_ref())?;
        let export = Export::begin(&self.pool, &self.turns, range).await?;
        Ok(Response::new(export::pages(export, self.stop.clone())))
    }
}
