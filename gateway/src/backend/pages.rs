//! Calls that only the pages make. Each is in the user's name; an empty account is the user's own, and another one's is
//! for admins, which the services judge.

use std::{future::Future, time::Duration};

use nexus_proto::{analytics::v1 as analytics, billing::v1 as billing, usage::v1 as usage};
use tonic::{Code, Request, Response, Status};

use super::{Backend, STRIPE_TIMEOUT, call};
use crate::{
    auth::User,
    error::Error,
    status::{self, Credentials},
};

/// How long a page waits for a reconciliation, which goes on without it.
const RECONCILE_PATIENCE: Duration = Duration::from_secs(10);

const NO_ACCOUNT: &str = "Account not found";

impl Backend {
    async fn ask<M, T, F>(
        &self,
        rpc: &'static str,
        user: &User,
        timeout: Duration,
        message: M,
        send: impl FnOnce(Request<M>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let options =
            self.user_within(user, timeout).map_err(|_| Status::unauthenticated("the token is no header"))?;
        call(rpc, options, timeout, message, send).await
    }

    /// An account.
    pub async fn account(&self, user: &User, eco_id: &str) -> Result<billing::Account, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetAccountRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_account(r).await };
        let answer = self.ask("BillingService.GetAccount", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))?.account.ok_or_else(left_out("account"))
    }

    /// An account's usage of its current period.
    pub async fn usage_of_account(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<usage::GetCurrentUsageResponse, Error> {
        let mut client = self.users.usage.clone();
        let request = usage::GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_current_usage(r).await };
        let answer = self.ask("UsageService.GetCurrentUsage", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// An account's usage by day.
    pub async fn history_of_account(
        &self,
        user: &User,
        eco_id: &str,
        days_count: i32,
    ) -> Result<analytics::GetUsageHistoryResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::GetUsageHistoryRequest { eco_id: eco_id.to_owned(), days_count };
        let send = |r| async move { client.get_usage_history(r).await };
        let answer = self.ask("AnalyticsService.GetUsageHistory", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// An account's busiest endpoints.
    pub async fn endpoints_of_account(
        &self,
        user: &User,
        eco_id: &str,
        days_count: i32,
    ) -> Result<analytics::ListEndpointStatsResponse, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::ListEndpointStatsRequest {
            eco_id: eco_id.to_owned(),
            days_count,
            page_size: 20,
            page_token: String::new(),
        };
        let send = |r| async move { client.list_endpoint_stats(r).await };
        let answer = self.ask("AnalyticsService.ListEndpointStats", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// What an account's period is expected to come to; nothing where the service does not tell.
    pub async fn forecast_of_account(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<Option<analytics::ForecastUsageResponse>, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::ForecastUsageRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.forecast_usage(r).await };
        known(self.ask("AnalyticsService.ForecastUsage", user, self.timeout, request, send).await)
    }

    /// An account's overage.
    pub async fn overage_of_account(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<billing::GetOverageResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetOverageRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_overage(r).await };
        let answer = self.ask("BillingService.GetOverage", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// An account's subscription.
    pub async fn subscription_of_account(
        &self,
        user: &User,
        eco_id: &str,
    ) -> Result<billing::Subscription, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetSubscriptionRequest { eco_id: eco_id.to_owned() };
        let send = |r| async move { client.get_subscription(r).await };
        let answer = self.ask("BillingService.GetSubscription", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))?.subscription.ok_or_else(left_out("subscription"))
    }

    /// A page of an account's charges.
    pub async fn charges(
        &self,
        user: &User,
        request: billing::ListChargesRequest,
    ) -> Result<billing::ListChargesResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.list_charges(r).await };
        let answer = self.ask("BillingService.ListCharges", user, self.timeout, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Why a charge is what it is; nothing where that was not kept.
    pub async fn explain_charge(
        &self,
        user: &User,
        charge_id: &str,
    ) -> Result<Option<billing::ExplainChargeResponse>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ExplainChargeRequest { charge_id: charge_id.to_owned() };
        let send = |r| async move { client.explain_charge(r).await };
        match self.ask("BillingService.ExplainCharge", user, self.timeout, request, send).await {
            Ok(explained) => Ok(Some(explained)),
            Err(s) if nexus_kit::status::reason(&s) == "BASIS_NOT_KEPT" => Ok(None),
            // No id of a charge is one that does not exist.
            Err(s) if s.code() == Code::InvalidArgument => Err(Error::NotFound("Charge not found")),
            Err(s) => Err(refused("Charge not found")(s)),
        }
    }

    /// The plans.
    pub async fn plans(&self, user: &User) -> Result<Vec<billing::PlanVersion>, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.list_plans(r).await };
        let request = billing::ListPlansRequest::default();
        let answer = self.ask("BillingService.ListPlans", user, self.timeout, request, send).await;
        answer.map(|listed| listed.plans).map_err(refused("Plans not found"))
    }

    /// Moves an account to another plan.
    pub async fn change_plan(
        &self,
        user: &User,
        request: billing::ChangePlanRequest,
    ) -> Result<billing::ChangePlanResponse, Error> {
        let mut client = self.users.billing.clone();
        let send = |r| async move { client.change_plan(r).await };
        let answer = self.ask("BillingService.ChangePlan", user, STRIPE_TIMEOUT, request, send).await;
        answer.map_err(refused(NO_ACCOUNT))
    }

    /// Revenue by month; nothing where the service does not tell.
    pub async fn revenue_by_month(
        &self,
        admin: &User,
        months_count: i32,
    ) -> Result<Option<Vec<analytics::MonthlyRevenue>>, Error> {
        let mut client = self.users.analytics.clone();
        let request = analytics::GetRevenueHistoryRequest { months_count, currency_code: String::new() };
        let send = |r| async move { client.get_revenue_history(r).await };
        let answer = self.ask("AnalyticsService.GetRevenueHistory", admin, self.timeout, request, send).await;
        Ok(known(answer)?.map(|history: analytics::GetRevenueHistoryResponse| history.months))
    }

    /// A page of the runs of billing.
    pub async fn runs(
        &self,
        admin: &User,
        page_token: &str,
    ) -> Result<billing::ListOverageRunsResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListOverageRunsRequest { page_size: 20, page_token: page_token.to_owned() };
        let send = |r| async move { client.list_overage_runs(r).await };
        let answer = self.ask("BillingService.ListOverageRuns", admin, self.timeout, request, send).await;
        answer.map_err(refused("Run not found"))
    }

    /// A run of billing.
    pub async fn run(&self, admin: &User, run_id: &str) -> Result<billing::OverageRun, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetOverageRunRequest { run_id: run_id.to_owned() };
        let send = |r| async move { client.get_overage_run(r).await };
        let answer = self.ask("BillingService.GetOverageRun", admin, self.timeout, request, send).await;
        answer.map_err(no_such_run)?.run.ok_or_else(left_out("run"))
    }

    /// A page of the accounts that a run could not charge.
    pub async fn run_errors(
        &self,
        admin: &User,
        run_id: &str,
        page_token: &str,
    ) -> Result<billing::ListOverageRunErrorsResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListOverageRunErrorsRequest {
            run_id: run_id.to_owned(),
            page_size: 50,
            page_token: page_token.to_owned(),
        };
        let send = |r| async move { client.list_overage_run_errors(r).await };
        let answer =
            self.ask("BillingService.ListOverageRunErrors", admin, self.timeout, request, send).await;
        answer.map_err(no_such_run)
    }

    /// What a run of billing would charge.
    pub async fn dry_run(&self, admin: &User) -> Result<billing::ProcessOverageResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ProcessOverageRequest { dry_run: true, ..Default::default() };
        let send = |r| async move { client.process_overage(r).await };
        let answer = self.ask("BillingService.ProcessOverage", admin, self.cron_timeout, request, send).await;
        answer.map_err(refused("Not found"))
    }

    /// Compares the records with each other and with Stripe, and repairs nothing.
    pub async fn compare(&self, admin: &User, request_id: &str) -> Result<billing::ReconcileResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ReconcileRequest { request_id: request_id.to_owned(), ..Default::default() };
        let send = |r| async move { client.reconcile(r).await };
        let answer = self.ask("BillingService.Reconcile", admin, RECONCILE_PATIENCE, request, send).await;
        answer.map_err(refused("Not found"))
    }

    /// Who changed what of an account, newest first.
    pub async fn audit_log(&self, admin: &User, eco_id: &str) -> Result<Vec<billing::AuditEntry>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListAuditLogRequest {
            eco_id: eco_id.to_owned(),
            page_size: 20,
            page_token: String::new(),
        };
        let send = |r| async move { client.list_audit_log(r).await };
        let answer = self.ask("BillingService.ListAuditLog", admin, self.timeout, request, send).await;
        answer.map(|log| log.entries).map_err(refused(NO_ACCOUNT))
    }
}

fn refused(not_found: &'static str) -> impl Fn(Status) -> Error {
    move |status| status::rest(&status, Credentials::User, not_found)
}

/// What is no id of a run is one that does not exist.
fn no_such_run(status: Status) -> Error {
    const NO_RUN: &str = "Run not found";
    if status.code() == Code::InvalidArgument { Error::NotFound(NO_RUN) } else { refused(NO_RUN)(status) }
}

fn left_out(what: &'static str) -> impl Fn() -> Error {
    move || Error::Internal(format!("the service left out {what}"))
}

/// The answer of a call that an older service does not have.
fn known<T>(answer: Result<T, Status>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(refused(NO_ACCOUNT)(status)),
    }
}
