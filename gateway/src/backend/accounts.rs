//! What is known of an account: an admin's any, a user's own. An empty id means the caller's own.

use nexus_proto::{billing::v1 as billing, usage::v1 as usage};

use super::{Backend, call};
use crate::{
    auth::User,
    error::Error,
    status::{self, Credentials},
};

impl Backend {
    /// An account.
    pub async fn account_of(&self, user: &User, eco_id: &str) -> Result<billing::Account, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.get_account(r).await };
        let request = billing::GetAccountRequest { eco_id: eco_id.to_owned() };
        let answer = call("BillingService.GetAccount", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))?;
        answer.account.ok_or_else(|| Error::Internal("the service left out account".to_owned()))
    }

    /// An account's subscription.
    pub async fn subscription_of(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<Option<billing::Subscription>, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.get_subscription(r).await };
        let request = billing::GetSubscriptionRequest { eco_id: eco_id.to_owned() };
        call("BillingService.GetSubscription", self.user(user)?, self.timeout, request, send)
            .await
            .map(|answer| answer.subscription)
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// An account's usage of its current period, as a user may see it.
    pub async fn current_usage_of(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<usage::GetCurrentUsageResponse, Error> {
        let mut client = self.users.usage.clone();
        let send = |r| async move { client.get_current_usage(r).await };
        let request = usage::GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
        call("UsageService.GetCurrentUsage", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// An account's overage.
    pub async fn overage_of(&self, user: &User, eco_id: &str) -> Result<billing::GetOverageResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.get_overage(r).await };
        let request = billing::GetOverageRequest { eco_id: eco_id.to_owned() };
        call("BillingService.GetOverage", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// A page of an account's charges, newest first.
    pub async fn charges_of(
        &self,
        user: &User,
        request: billing::ListChargesRequest,
    ) -> Result<billing::ListChargesResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.list_charges(r).await };
        call("BillingService.ListCharges", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Account not found"))
    }

    /// How a charge came about; another account's is not there.
    pub async fn explanation_of(
        &self,
        user: &User,
        charge_id: &str,
    ) -> Result<billing::ExplainChargeResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.explain_charge(r).await };
        let request = billing::ExplainChargeRequest { charge_id: charge_id.to_owned() };
        call("BillingService.ExplainCharge", self.user(user)?, self.timeout, request, send)
            .await
            .map_err(|s| status::rest(&s, Credentials::User, "Charge not found"))
    }
}
