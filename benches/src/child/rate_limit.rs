//! Envoy's rate limit service, twice: the least that answers it, and the limits of another project.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, anyhow};
use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_response::Code,
    rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
};
use limitador::{
    RateLimiter,
    limit::{Context, Expression, Limit, Namespace},
};
use tonic::{Request, Response, Status};

use super::server::{decoded, serve_bare};

const MONTH_SECONDS: u64 = 30 * 24 * 3600;
/// As the plan `pro` includes, with which usage-svc is measured, but out of reach: nobody is refused there either.
const LIMIT: u64 = u64::MAX / 2;

#[derive(clap::Args)]
pub(crate) struct EchoArgs {
    /// The answer, encoded, in hexadecimal
    #[arg(long, value_parser = decoded::<RateLimitResponse>)]
    answer: Arc<RateLimitResponse>,
}

impl EchoArgs {
    pub(super) fn service(self) -> RateLimitServiceServer<Echo> {
        RateLimitServiceServer::new(Echo(self.answer))
    }

    pub(super) async fn run(self) -> Result<()> {
        serve_bare(self.service()).await
    }
}

/// Answers with one and the same message.
pub(super) struct Echo(Arc<RateLimitResponse>);

#[tonic::async_trait]
impl RateLimitService for Echo {
    async fn should_rate_limit(
        &self,
        _: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(RateLimitResponse::clone(&self.0)))
    }
}

#[derive(clap::Args)]
pub(crate) struct LimitadorArgs {
    /// Counters that it keeps at most
    #[arg(long)]
    accounts: u64,
}

impl LimitadorArgs {
    pub(super) async fn run(self) -> Result<()> {
        let limiter = RateLimiter::new(2 * self.accounts.max(1_000));
        let account = Expression::parse("account").map_err(|e| anyhow!("{e}"))?;
        limiter.add_limit(Limit::new("nexus", LIMIT, MONTH_SECONDS, Vec::new(), [account]));
        serve_bare(RateLimitServiceServer::new(Limitador { limiter, namespace: "nexus".into() })).await
    }
}

/// The `limitador` crate with its counters in memory: a limit a month per account. It fills no statuses, as
/// its own server does not.
struct Limitador {
    limiter: RateLimiter,
    namespace: Namespace,
}

#[tonic::async_trait]
impl RateLimitService for Limitador {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let entries = request.descriptors.into_iter().flat_map(|d| d.entries);
        let values: HashMap<String, String> = entries.map(|e| (e.key, e.value)).collect();
        let context = Context::from(values);
        let hits = u64::from(request.hits_addend.max(1));
        let checked = self.limiter.check_rate_limited_and_update(&self.namespace, &context, hits);
        let checked = checked.map_err(|error| Status::internal(error.to_string()))?;
        let code = if checked.limited { Code::OverLimit } else { Code::Ok };
        Ok(Response::new(RateLimitResponse { overall_code: code.into(), ..Default::default() }))
    }
}
