//! What is known of an account, and what changes it.

use nexus_proto::{billing::v1 as billing, usage::v1 as usage};

use super::{Backend, NO_ACCOUNT, left_out, refused};
use crate::{auth::User, error::Error};

impl Backend {
    /// An account.
    pub async fn account(&self, user: &User, eco_id: &str) -> Result<billing::Account, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetAccountRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_account(r).await };
        let answer = self.ask("BillingService.GetAccount", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))?.account.ok_or_else(left_out("account"))
    }

    /// Its usage of the current period.
    pub async fn current_usage(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<usage::GetCurrentUsageResponse, Error> {
        let mut client = self.users.usage.clone();
        let request = usage::GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_current_usage(r).await };
        let answer = self.ask("UsageService.GetCurrentUsage", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Its overage.
    pub async fn overage(&self, user: &User, eco_id: &str) -> Result<billing::GetOverageResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetOverageRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_overage(r).await };
        let answer = self.ask("BillingService.GetOverage", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Sets what its overage may cost in a period.
    pub async fn set_spend_cap(
        &self,
        user: &User,
        request: billing::SetSpendCapRequest,
    ) -> Result<billing::SetSpendCapResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.set_spend_cap(r).await };
        let answer = self.ask("BillingService.SetSpendCap", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Its newest invoices at Stripe, as Stripe told of them.
    pub async fn invoices(&self, user: &User, eco_id: &str) -> Result<Vec<billing::Invoice>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListInvoicesRequest {
            eco_id: eco_id.to_owned(),
            page_size: 12,
            page_token: String::new(),
        };
        let send = |r| async move { client.list_invoices(r).await };
        let answer = self.ask("BillingService.ListInvoices", user, request, send).await;
        Ok(answer.map_err(refused(NO_ACCOUNT))?.invoices)
    }

    /// A page of its charges, newest first.
    pub async fn charges(
        &self,
        user: &User,
        request: billing::ListChargesRequest,
    ) -> Result<billing::ListChargesResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.list_charges(r).await };
        let answer = self.ask("BillingService.ListCharges", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Why a charge is what it is; another account's is not there.
    pub async fn explain_charge(
        &self,
        user: &User,
        charge_id: &str,
    ) -> Result<billing::ExplainChargeResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ExplainChargeRequest { charge_id: charge_id.to_owned() };
        let send = |r| async move { client.explain_charge(r).await };
        let answer = self.ask("BillingService.ExplainCharge", user, request, send).await;
        answer.map_err(refused("Charge not found"))
    }

    /// Who changed what of it, newest first, for an admin.
    pub async fn audit_log(&self, admin: &User, eco_id: &str) -> Result<Vec<billing::AuditEntry>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListAuditLogRequest {
            eco_id: eco_id.to_owned(),
            page_size: 20,
            page_token: String::new(),
        };
        let send = |r| async move { client.list_audit_log(r).await };
        let answer = self.ask("BillingService.ListAuditLog", admin, request, send).await;
        answer.map(|log| log.entries).map_err(refused(NO_ACCOUNT))
    }

    /// The plans that there are.
    pub async fn plans(&self, user: &User) -> Result<Vec<billing::PlanVersion>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListPlansRequest::default();
        let send = |r| async move { client.list_plans(r).await };
        let answer = self.ask("BillingService.ListPlans", user, request, send).await;
        answer.map(|listed| listed.plans).map_err(refused("Plans not found"))
    }

    /// Its subscription.
    pub async fn subscription(&self, user: &User, eco_id: &str) -> Result<billing::Subscription, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetSubscriptionRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_subscription(r).await };
        let answer = self.ask("BillingService.GetSubscription", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))?.subscription.ok_or_else(left_out("subscription"))
    }

    /// Moves it to another plan.
    pub async fn change_plan(
        &self,
        user: &User,
        request: billing::ChangePlanRequest,
    ) -> Result<billing::ChangePlanResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.change_plan(r).await };
        let answer = self.ask("BillingService.ChangePlan", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Opens a checkout.
    pub async fn create_checkout_session(
        &self,
        user: &User,
        request: billing::CreateCheckoutSessionRequest,
    ) -> Result<billing::CreateCheckoutSessionResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.create_checkout_session(r).await };
        let answer = self.ask("BillingService.CreateCheckoutSession", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Has its subscription end.
    pub async fn cancel_subscription(
        &self,
        user: &User,
        request: billing::CancelSubscriptionRequest,
    ) -> Result<billing::Subscription, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.cancel_subscription(r).await };
        let answer = self.ask("BillingService.CancelSubscription", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))?.subscription.ok_or_else(left_out("subscription"))
    }

    /// Has its subscription go on that was to end.
    pub async fn reactivate_subscription(
        &self,
        user: &User,
        request: billing::ReactivateSubscriptionRequest,
    ) -> Result<billing::Subscription, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.reactivate_subscription(r).await };
        let answer = self.ask("BillingService.ReactivateSubscription", user, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))?.subscription.ok_or_else(left_out("subscription"))
    }
}
