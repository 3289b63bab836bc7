//! The three services behind the gateway: one method an RPC, each with credentials, a deadline and the
//! trace context. What their statuses mean over REST is in [`status`].

mod accounts;
mod figures;
mod pages;

use std::{future::Future, sync::Arc, time::Duration};

use axum::body::Bytes;
use chrono::Utc;
use nexus_client::CallOptions;
use nexus_core::id::ApiKeyText;
use nexus_kit::telemetry;
use nexus_proto::{
    analytics::v1::{self as analytics, analytics_service_client::AnalyticsServiceClient},
    billing::v1::{self as billing, billing_service_client::BillingServiceClient},
    usage::v1::{self as usage, usage_service_client::UsageServiceClient},
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

/// Between the run's answer and the scheduler's.
const CRON_MARGIN: Duration = Duration::from_secs(1);

/// A call that makes some requests at Stripe.
const STRIPE_TIMEOUT: Duration = Duration::from_secs(20);

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
/// connections than the gateway's own, and never hold up the metering of calls, webhooks or health.
pub struct Backend {
    users: Clients,
    own: Clients,
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

    /// The channel to a service for what users ask for.
    pub fn channel(&self, service: Service) -> Channel {
        let place = match service {
            Service::Usage => 0,
            Service::Billing => 1,
            Service::Analytics => 2,
        };
        self.users.channels[place].1.clone()
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

    /// What a call in a user's name carries: the header the user sent.
    fn user(&self, user: &User) -> Result<CallOptions, Error> {
        self.user_within(user, self.timeout)
    }

    fn user_within(&self, user: &User, timeout: Duration) -> Result<CallOptions, Error> {
        CallOptions::new(user.authorization(), timeout).map_err(|_| Error::Unauthorized)
    }

    /// A user's usage of the current period.
    pub async fn current_usage(&self, user: &User) -> Result<usage::GetCurrentUsageResponse, Error> {
        let mut client = self.users.usage.clone();
        let request = usage::GetCurrentUsageRequest { eco_id: String::new() };
        let send = |r| async move { client.get_current_usage(r).await };
        call("UsageService.GetCurrentUsage", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "No usage record found"))
    }

    /// A user's usage by day.
    pub async fn history(
        &self,
        user: &User,
        days_count: i32,
    ) -> Result<analytics::GetUsageHistoryResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::GetUsageHistoryRequest { eco_id: String::new(), days_count };
        let send = |r| async move { client.get_usage_history(r).await };
        call("AnalyticsService.GetUsageHistory", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// A user's busiest endpoints.
    pub async fn endpoints(
        &self,
        user: &User,
        days_count: i32,
    ) -> Result<analytics::ListEndpointStatsResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::ListEndpointStatsRequest { days_count, ..Default::default() };
        let send = |r| async move { client.list_endpoint_stats(r).await };
        call("AnalyticsService.ListEndpointStats", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// A user's overage.
    pub async fn overage(&self, user: &User) -> Result<billing::GetOverageResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetOverageRequest { eco_id: String::new() };
        let send = |r| async move { client.get_overage(r).await };
        call("BillingService.GetOverage", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Sets what a user's overage may cost in a period.
    pub async fn set_spend_cap(
        &self,
        user: &User,
        request: billing::SetSpendCapRequest,
    ) -> Result<billing::SetSpendCapResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.set_spend_cap(r).await };
        call("BillingService.SetSpendCap", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// A user's subscription.
    pub async fn subscription(&self, user: &User) -> Result<Option<billing::Subscription>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetSubscriptionRequest { eco_id: String::new() };
        let send = |r| async move { client.get_subscription(r).await };
        call("BillingService.GetSubscription", self.user(user)?, self.timeout, request, send)
            .await
            .map(|answer| answer.subscription)
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Opens a checkout for a user.
    pub async fn create_checkout_session(
        &self,
        user: &User,
        request: billing::CreateCheckoutSessionRequest,
    ) -> Result<billing::CreateCheckoutSessionResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.create_checkout_session(r).await };
        let options = self.user_within(user, STRIPE_TIMEOUT)?;
        call("BillingService.CreateCheckoutSession", options, STRIPE_TIMEOUT, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Has a user's subscription end.
    pub async fn cancel_subscription(
        &self,
        user: &User,
        request: billing::CancelSubscriptionRequest,
    ) -> Result<Option<billing::Subscription>, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.cancel_subscription(r).await };
        let options = self.user_within(user, STRIPE_TIMEOUT)?;
        call("BillingService.CancelSubscription", options, STRIPE_TIMEOUT, request, send)
            .await
            .map(|answer| answer.subscription)
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Has a user's subscription go on that was to end.
    pub async fn reactivate_subscription(
        &self,
        user: &User,
        request: billing::ReactivateSubscriptionRequest,
    ) -> Result<Option<billing::Subscription>, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.reactivate_subscription(r).await };
        let options = self.user_within(user, STRIPE_TIMEOUT)?;
        call("BillingService.ReactivateSubscription", options, STRIPE_TIMEOUT, request, send)
            .await
            .map(|answer| answer.subscription)
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Makes a key for the user's account.
    pub async fn create_api_key(
        &self,
        user: &User,
        request: usage::CreateApiKeyRequest,
    ) -> Result<usage::CreateApiKeyResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.create_api_key(r).await };
        call("UsageService.CreateApiKey", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// A page of the user's keys.
    pub async fn api_keys(
        &self,
        user: &User,
        request: usage::ListApiKeysRequest,
    ) -> Result<usage::ListApiKeysResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.list_api_keys(r).await };
        call("UsageService.ListApiKeys", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// Revokes one of the user's keys.
    pub async fn revoke_api_key(
        &self,
        user: &User,
        request: usage::RevokeApiKeyRequest,
    ) -> Result<usage::RevokeApiKeyResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.revoke_api_key(r).await };
        call("UsageService.RevokeApiKey", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "API key not found"))
    }

    /// Gives one of the user's keys a new secret.
    pub async fn rotate_api_key(
        &self,
        user: &User,
        request: usage::RotateApiKeyRequest,
    ) -> Result<usage::RotateApiKeyResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.rotate_api_key(r).await };
        call("UsageService.RotateApiKey", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "API key not found"))
    }

    /// The business at a glance, for an admin.
    pub async fn overview(&self, admin: &User) -> Result<analytics::GetOverviewResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.get_overview(r).await };
        let request = analytics::GetOverviewRequest {};
        call("AnalyticsService.GetOverview", self.user(admin)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Not found"))
    }

    /// A page of accounts, for an admin.
    pub async fn users(
        &self,
        admin: &User,
        request: analytics::ListUsersRequest,
    ) -> Result<analytics::ListUsersResponse, Error> {
        let mut client = self.users.analytics.clone();
        let send = |r| async move { client.list_users(r).await };
        call("AnalyticsService.ListUsers", self.user(admin)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Not found"))
    }

    /// Runs billing for all accounts.
    pub async fn process_overage(&self) -> Result<billing::ProcessOverageResponse, Error> {
        let mut client = self.own.billing.clone();
        let send = |r| async move { client.process_overage(r).await };
        let request = billing::ProcessOverageRequest::default();
        let timeout = self.cron_timeout.saturating_sub(CRON_MARGIN);
        call("BillingService.ProcessOverage", self.own(timeout)?, timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::Gateway, "Not found"))
    }

    /// Hands an event of Stripe's on, and returns once it is stored.
    pub async fn handle_stripe_event(
        &self,
        payload: Bytes,
        signature: &str,
    ) -> Result<billing::HandleStripeEventResponse, Error> {
        let mut client = self.own.billing.clone();
        let send = |r| async move { client.handle_stripe_event(r).await };
        let request =
            billing::HandleStripeEventRequest { payload: payload.into(), signature: signature.to_owned() };
        call("BillingService.HandleStripeEvent", self.own(self.timeout)?, self.timeout, request, send)
            .await
            .map_err(|s| status::of_webhook(&s))
    }

    /// Whose API key this is.
    pub async fn verify_api_key(&self, key: &ApiKeyText) -> Result<usage::VerifyApiKeyResponse, Error> {
        let mut client = self.own.usage.clone();
        let send = |r| async move { client.verify_api_key(r).await };
        let request = usage::VerifyApiKeyRequest { key: key.expose() };
        call("UsageService.VerifyApiKey", self.own(self.timeout)?, self.timeout, request, send)
            .await
            .map_err(|s| status::of_api_key(&s))
    }

    /// An account's usage of the current period, whoever asks.
    pub async fn usage_of(&self, eco_id: &str) -> Result<usage::GetCurrentUsageResponse, Error> {
        let mut client = self.own.usage.clone();
        let send = |r| async move { client.get_current_usage(r).await };
        let request = usage::GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
        call("UsageService.GetCurrentUsage", self.own(self.timeout)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::Gateway, "Account not found"))
    }
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
