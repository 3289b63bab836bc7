//! The three services behind the gateway: one method an RPC, each with credentials, a deadline and the
//! trace context. What their statuses mean over REST is in [`status`].
//!
//! | module | calls |
//! |---|---|
//! | `accounts` | in a user's name, about an account: its usage, overage, charges, subscription |
//! | `analytics` | in a user's name, of analytics-svc |
//! | `keys` | in a user's name, about API keys |
//! | `own` | in the gateway's own name |
//! | `runs` | in an admin's name, about billing runs and reconciliations |
//!
//! Where a call in a user's name takes an account, an empty one is the user's own; another one is for admins, which the
//! services judge.

mod accounts;
mod analytics;
mod keys;
mod own;
mod runs;

use std::{future::Future, sync::Arc, time::Duration};

use chrono::Utc;
use nexus_client::CallOptions;
use nexus_kit::telemetry;
use nexus_proto::{
    analytics::v1::analytics_service_client::AnalyticsServiceClient,
    billing::v1::billing_service_client::BillingServiceClient,
    usage::v1::usage_service_client::UsageServiceClient,
};
use tonic::{Code, Request, Response, Status, transport::Channel};
use tracing::{Instrument, Span};

use crate::{
    auth::User,
    config::Config,
    error::{Error, StartError},
    status::{self, Credentials},
    token::ServiceTokens,
};

/// How long a call may take that makes some requests at Stripe, or as long as any other where that is longer.
const STRIPE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls that do.
const AT_STRIPE: [&str; 6] = [
    "ChangePlan",
    "CreateCheckoutSession",
    "CancelSubscription",
    "ReactivateSubscription",
    "CreateAccount",
    "CloseAccount",
];
/// Calls that go through all accounts. They may take as long as a run may for the scheduler.
const OF_ALL_ACCOUNTS: [&str; 2] = ["ProcessOverage", "Reconcile"];

const NO_ACCOUNT: &str = "Account not found";

/// Clients of the three services, over connections of their own.
struct Clients {
    usage: UsageServiceClient<Channel>,
    billing: BillingServiceClient<Channel>,
    analytics: AnalyticsServiceClient<Channel>,
    channels: [(&'static str, Channel); 3],
}

impl Clients {
    fn new(config: &Config) -> Result<Self, StartError> {
        let channel = |variable, flag, address: &str| {
            let channel = nexus_client::trusting_channel(address, config.tls_ca.as_deref());
            channel.map_err(|error| StartError::Address { variable, flag, error })
        };
        let usage = channel("USAGE_ADDR", "usage-addr", &config.usage_addr)?;
        let billing = channel("BILLING_ADDR", "billing-addr", &config.billing_addr)?;
        let analytics = channel("ANALYTICS_ADDR", "analytics-addr", &config.analytics_addr)?;
        Ok(Self {
            usage: nexus_client::usage(usage.clone()),
            billing: nexus_client::billing(billing.clone()),
            analytics: nexus_client::analytics(analytics.clone()),
            channels: [("usage-svc", usage), ("billing-svc", billing), ("analytics-svc", analytics)],
        })
    }
}

/// One of the three services.
#[derive(Debug, Clone, Copy)]
pub enum Service {
    /// usage-svc
    Usage,
    /// billing-svc
    Billing,
    /// analytics-svc
    Analytics,
}

/// The three services. A connection takes so many calls at once and no more: those that users ask for have other
/// connections than the gateway's own, and never hold up the metering of calls, webhooks or health. Exports and calls of
/// gRPC-Web, which last as long as their clients like, have others again.
pub struct Backend {
    users: Clients,
    own: Clients,
    exports: AnalyticsServiceClient<Channel>,
    web: [Channel; 3],
    tokens: Arc<ServiceTokens>,
    timeout: Duration,
    cron_timeout: Duration,
}

impl Backend {
    /// Reads the addresses; connects when first used.
    pub fn new(config: &Config) -> Result<Self, StartError> {
        Ok(Self {
            users: Clients::new(config)?,
            own: Clients::new(config)?,
            exports: Clients::new(config)?.analytics,
            web: Clients::new(config)?.channels.map(|(_, channel)| channel),
            tokens: Arc::new(ServiceTokens::new(config.auth.service_token_secret.clone())),
            timeout: config.backend_timeout,
            cron_timeout: config.cron_timeout,
        })
    }

    /// The services' names and channels for the gateway's own calls, for readiness.
    pub fn channels(&self) -> &[(&'static str, Channel); 3] {
        &self.own.channels
    }

    /// The channel to usage-svc for the gateway's own calls.
    pub fn usage_channel(&self) -> Channel {
        self.own.channels[0].1.clone()
    }

    /// The channel to a service for calls of gRPC-Web.
    pub fn web_channel(&self, service: Service) -> Channel {
        let place = match service {
            Service::Usage => 0,
            Service::Billing => 1,
            Service::Analytics => 2,
        };
        self.web[place].clone()
    }

    /// How long a service may take to answer, or to begin to: `/nexus.….BillingService/ChangePlan` or
    /// `BillingService.ChangePlan`. Whoever goes on without the answer may wait for less.
    pub fn patience(&self, rpc: &str) -> Duration {
        patience(rpc, self.timeout, self.cron_timeout)
    }

    /// Who the gateway is for the services, for calls that others make in its name.
    pub fn credentials(&self) -> nexus_client::Credentials {
        let tokens = self.tokens.clone();
        nexus_client::Credentials::from_fn(move || Ok(format!("Bearer {}", tokens.get(Utc::now())?)))
    }

    /// What a call of the gateway's own carries.
    pub fn own(&self, timeout: Duration) -> Result<CallOptions, Error> {
        let token = self.tokens.get(Utc::now())?;
        CallOptions::bearer(&token, timeout).map_err(|e| Error::Internal(e.to_string()))
    }

    /// A call in a user's name, with the header the user sent.
    async fn ask<M, T, F>(
        &self,
        rpc: &'static str,
        user: &User,
        message: M,
        send: impl FnOnce(Request<M>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_within(self.patience(rpc), rpc, user, message, send).await
    }

    async fn ask_within<M, T, F>(
        &self,
        timeout: Duration,
        rpc: &'static str,
        user: &User,
        message: M,
        send: impl FnOnce(Request<M>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        call(rpc, of_user(user, timeout)?, timeout, message, send).await
    }
}

fn patience(rpc: &str, usual: Duration, of_a_run: Duration) -> Duration {
    let method = rpc.rsplit(['/', '.']).next().unwrap_or_default();
    match method {
        _ if AT_STRIPE.contains(&method) => STRIPE_TIMEOUT.max(usual),
        _ if OF_ALL_ACCOUNTS.contains(&method) => of_a_run,
        _ => usual,
    }
}

fn of_user(user: &User, timeout: Duration) -> Result<CallOptions, Status> {
    let options = CallOptions::new(user.authorization(), timeout);
    options.map_err(|_| Status::unauthenticated("the token is no header"))
}

/// What a refusal of a call in a user's name means; `not_found` is the text for an unknown thing.
fn refused(not_found: &'static str) -> impl Fn(Status) -> Error + Copy {
    move |status| status::rest(&status, Credentials::User, not_found)
}

fn left_out(what: &'static str) -> impl Fn() -> Error {
    move || Error::Internal(format!("the service left out {what}"))
}

/// One call: with credentials and a deadline.
async fn call<M, T, F>(
    rpc: &'static str,
    options: CallOptions,
    timeout: Duration,
    message: M,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    answered(rpc, options.request(message), timeout, send).await
}

/// The answer to a request: with its span, the trace context for the service, and a deadline that holds whatever
/// the transport does.
async fn answered<M, T, F>(
    rpc: &'static str,
    mut request: Request<M>,
    timeout: Duration,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let request_span = Span::current();
    let span = tracing::info_span!(
        "call",
        otel.name = rpc,
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.grpc.status_code = tracing::field::Empty,
    );
    let work = async {
        telemetry::propagate_trace_to_rpc(request.metadata_mut());
        let answer = tokio::time::timeout(timeout, send(request))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within the deadline")));
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        Span::current().record("rpc.grpc.status_code", code as i32);
        if code != Code::Ok {
            request_span.record("failed_call", rpc);
        }
        answer.map(Response::into_inner)
    };
    work.instrument(span).await
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn who_asks_for_an_rpc_by_whichever_name_has_the_same_patience() -> anyhow::Result<()> {
        let seconds =
            |rpc: &str, usual| patience(rpc, Duration::from_secs(usual), Duration::from_secs(55)).as_secs();
        for (method, patience) in [("ChangePlan", 20), ("Reconcile", 55), ("GetAccount", 5)] {
            assert_eq!(seconds(&format!("BillingService.{method}"), 5), patience, "{method}");
            assert_eq!(
                seconds(&format!("/nexus.billing.v1.BillingService/{method}"), 5),
                patience,
                "{method}"
            );
        }
        assert_eq!(seconds("BillingService.ChangePlan", 30), 30);
        let files = FileDescriptorSet::decode(nexus_proto::DESCRIPTOR_SET)?.file;
        let rpcs: Vec<_> =
            files.iter().flat_map(|file| &file.service).flat_map(|service| &service.method).collect();
        for named in AT_STRIPE.iter().chain(&OF_ALL_ACCOUNTS) {
            assert!(rpcs.iter().any(|rpc| rpc.name() == *named), "{named}");
        }
        Ok(())
    }
}
