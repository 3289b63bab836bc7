//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.

use nexus_kit::{serve::MAX_MESSAGE_BYTES, status};
use nexus_proto::analytics::v1::{
    analytics_service_server::{AnalyticsService, AnalyticsServiceServer},
    *,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status, codec::CompressionEncoding};

/// The service.
pub struct Service {
    /// Connections that act as the service's role.
    pub pool: PgPool,
}

/// The tonic server: message sizes bounded, compressed requests accepted.
pub fn server(service: Service) -> AnalyticsServiceServer<Service> {
    AnalyticsServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

#[tonic::async_trait]
impl AnalyticsService for Service {
    async fn get_usage_history(
        &self,
        _request: Request<GetUsageHistoryRequest>,
    ) -> Result<Response<GetUsageHistoryResponse>, Status> {
        Err(status::not_implemented("GetUsageHistory"))
    }

    async fn list_endpoint_stats(
        &self,
        _request: Request<ListEndpointStatsRequest>,
    ) -> Result<Response<ListEndpointStatsResponse>, Status> {
        Err(status::not_implemented("ListEndpointStats"))
    }

    async fn get_overview(
        &self,
        _request: Request<GetOverviewRequest>,
    ) -> Result<Response<GetOverviewResponse>, Status> {
        Err(status::not_implemented("GetOverview"))
    }

    async fn list_users(
        &self,
        _request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        Err(status::not_implemented("ListUsers"))
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
