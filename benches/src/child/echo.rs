use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use nexus_proto::usage::v1::{
    CheckQuotaRequest, CheckQuotaResponse, EventOutcome, RecordUsageRequest, RecordUsageResponse,
};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower::Service;

/// Decodes a request of CheckQuota or RecordUsage and answers with one and the same message: the least that a
/// gRPC server can do for messages of these sizes. It has usage-svc's name, so that one load generator calls either.
#[derive(Clone)]
pub(super) struct Echo {
    pub(super) answer: Arc<CheckQuotaResponse>,
}

impl NamedService for Echo {
    const NAME: &'static str = "nexus.usage.v1.UsageService";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/RecordUsage") {
                let mut grpc = Grpc::new(ProstCodec::<RecordUsageResponse, RecordUsageRequest>::default());
                return Ok(grpc.unary(method, request).await);
            }
            let mut grpc = Grpc::new(ProstCodec::<CheckQuotaResponse, CheckQuotaRequest>::default());
            Ok(grpc.unary(method, request).await)
        })
    }
}

impl UnaryService<CheckQuotaRequest> for Echo {
    type Response = CheckQuotaResponse;
    type Future = Ready<Result<Response<CheckQuotaResponse>, Status>>;

    fn call(&mut self, _: Request<CheckQuotaRequest>) -> Self::Future {
        ready(Ok(Response::new(CheckQuotaResponse::clone(&self.answer))))
    }
}

impl UnaryService<RecordUsageRequest> for Echo {
    type Response = RecordUsageResponse;
    type Future = Ready<Result<Response<RecordUsageResponse>, Status>>;

    fn call(&mut self, _: Request<RecordUsageRequest>) -> Self::Future {
        ready(Ok(Response::new(RecordUsageResponse {
            outcome: EventOutcome::Accepted.into(),
            ..Default::default()
        })))
    }
}
