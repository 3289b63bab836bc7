//! Calls in the gateway's own name.

use std::time::Duration;

use axum::body::Bytes;
use nexus_core::id::ApiKeyText;
use nexus_proto::{billing::v1 as billing, usage::v1 as usage};

use super::{Backend, NO_ACCOUNT, call};
use crate::{
    error::Error,
    status::{self, Credentials},
};

const RUN: &str = "BillingService.ProcessOverage";
/// Between the run's answer and the scheduler's.
const CRON_MARGIN: Duration = Duration::from_secs(1);

impl Backend {
    /// Runs billing for all accounts.
    pub async fn process_overage(&self) -> Result<billing::ProcessOverageResponse, Error> {
        let mut client = self.own.billing.clone();
        let send = |r| async move { client.process_overage(r).await };
        let request = billing::ProcessOverageRequest::default();
        let timeout = self.patience(RUN).saturating_sub(CRON_MARGIN);
        call(RUN, self.own(timeout)?, timeout, request, send)
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
            .map_err(|s| status::rest(&s, Credentials::Gateway, NO_ACCOUNT))
    }
}
