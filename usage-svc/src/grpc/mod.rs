//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.

use nexus_kit::{serve::MAX_MESSAGE_BYTES, status};
use nexus_proto::usage::v1::{
    usage_service_server::{UsageService, UsageServiceServer},
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
pub fn server(service: Service) -> UsageServiceServer<Service> {
    UsageServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

#[tonic::async_trait]
impl UsageService for Service {
    async fn record_usage(
        &self,
        _request: Request<RecordUsageRequest>,
    ) -> Result<Response<RecordUsageResponse>, Status> {
        Err(status::not_implemented("RecordUsage"))
    }

    async fn batch_record_usage(
        &self,
        _request: Request<BatchRecordUsageRequest>,
    ) -> Result<Response<BatchRecordUsageResponse>, Status> {
        Err(status::not_implemented("BatchRecordUsage"))
    }

    type StreamUsageStream = tokio_stream::Empty<Result<StreamUsageResponse, Status>>;

    async fn stream_usage(
        &self,
        _request: Request<tonic::Streaming<StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        Err(status::not_implemented("StreamUsage"))
    }

    async fn check_quota(
        &self,
        _request: Request<CheckQuotaRequest>,
    ) -> Result<Response<CheckQuotaResponse>, Status> {
        Err(status::not_implemented("CheckQuota"))
    }

    type LeaseQuotaStream = tokio_stream::Empty<Result<LeaseQuotaResponse, Status>>;

    async fn lease_quota(
        &self,
        _request: Request<tonic::Streaming<LeaseQuotaRequest>>,
    ) -> Result<Response<Self::LeaseQuotaStream>, Status> {
        Err(status::not_implemented("LeaseQuota"))
    }

    async fn get_current_usage(
        &self,
        _request: Request<GetCurrentUsageRequest>,
    ) -> Result<Response<GetCurrentUsageResponse>, Status> {
        Err(status::not_implemented("GetCurrentUsage"))
    }

    async fn create_api_key(
        &self,
        _request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        Err(status::not_implemented("CreateApiKey"))
    }

    async fn list_api_keys(
        &self,
        _request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        Err(status::not_implemented("ListApiKeys"))
    }

    async fn revoke_api_key(
        &self,
        _request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        Err(status::not_implemented("RevokeApiKey"))
    }

    async fn rotate_api_key(
        &self,
        _request: Request<RotateApiKeyRequest>,
    ) -> Result<Response<RotateApiKeyResponse>, Status> {
        Err(status::not_implemented("RotateApiKey"))
    }

    async fn verify_api_key(
        &self,
        _request: Request<VerifyApiKeyRequest>,
    ) -> Result<Response<VerifyApiKeyResponse>, Status> {
        Err(status::not_implemented("VerifyApiKey"))
    }

    async fn register_import(
        &self,
        _request: Request<RegisterImportRequest>,
    ) -> Result<Response<RegisterImportResponse>, Status> {
        Err(status::not_implemented("RegisterImport"))
    }
}
