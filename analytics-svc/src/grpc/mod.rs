//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.
//!
//! | module | what it does |
//! |---|---|
//! | `parse` | requests into the domain's types, all violations at once |
//! | `answer` | the domain's types into responses |

mod answer;
mod parse;

use nexus_kit::{auth::Caller, page, serve::MAX_REQUEST_BYTES, status};
use nexus_proto::analytics::v1::{
    analytics_service_server::{AnalyticsService, AnalyticsServiceServer},
    *,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status, codec::CompressionEncoding};

use crate::{
    app::{get_overview, get_usage_history, list_endpoint_stats, list_users},
    error::Error,
};

/// The service.
pub struct Service {
    /// Connections that act as the service's role.
    pub pool: PgPool,
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
        _request: Request<ListTopUsersRequest>,
    ) -> Result<Response<ListTopUsersResponse>, Status> {
        Err(status::not_implemented("ListTopUsers"))
    }

    async fn get_revenue_history(
        &self,
        _request: Request<GetRevenueHistoryRequest>,
    ) -> Result<Response<GetRevenueHistoryResponse>, Status> {
        Err(status::not_implemented("GetRevenueHistory"))
    }

    async fn forecast_usage(
        &self,
        _request: Request<ForecastUsageRequest>,
    ) -> Result<Response<ForecastUsageResponse>, Status> {
        Err(status::not_implemented("ForecastUsage"))
    }

    type ExportUsageStream = tokio_stream::Empty<Result<ExportUsageResponse, Status>>;

    async fn export_usage(
        &self,
        _request: Request<ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        Err(status::not_implemented("ExportUsage"))
    }
}
