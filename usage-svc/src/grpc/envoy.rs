//! Envoy's rate limit service: answered as not implemented, so that a filter that is pointed here fails
//! visibly. Its crate carries no descriptors, so reflection does not list it.

use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
};
use nexus_kit::{serve::MAX_REQUEST_BYTES, status};
use tonic::{Request, Response, Status};

/// The service.
pub struct RateLimit;

/// The tonic server.
pub fn server() -> RateLimitServiceServer<RateLimit> {
    RateLimitServiceServer::new(RateLimit).max_decoding_message_size(MAX_REQUEST_BYTES)
}

#[tonic::async_trait]
impl RateLimitService for RateLimit {
    async fn should_rate_limit(
        &self,
        _request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        Err(status::not_implemented("ShouldRateLimit"))
    }
}
