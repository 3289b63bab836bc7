//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.

mod accounts;
mod deadline;
mod invoices;
mod ledger;
mod overage;
mod reconcile;
mod reconciliations;
mod runs;
mod subscriptions;
mod webhooks;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use nexus_kit::{
    auth::{Caller, Scope},
    page,
    rpc::BySize,
    serve::MAX_WEBHOOK_BYTES,
};
use nexus_proto::billing::v1::{
    billing_service_server::{BillingService, BillingServiceServer},
    *,
};
use sqlx::PgPool;
use tokio::{sync::Notify, time::Instant};
use tonic::{Request, Response, Status, codec::CompressionEncoding};
use uuid::Uuid;

use crate::{
    app::{self, process_overage::Engine, reconcile::Reconciler, sales::Sales},
    domain::{stripe_signature::Secrets, webhook::url::Policy},
    error::Error,
};

/// The service.
pub struct Service {
    /// Connections that act as the service's role.
    pub pool: PgPool,
    /// Sells subscriptions.
    pub sales: Sales,
    /// Runs ProcessOverage.
    pub engine: Arc<Engine>,
    /// Runs Reconcile.
    pub reconciler: Arc<Reconciler>,
    /// Under which Stripe signs its webhooks.
    pub webhook_secrets: Secrets,
    /// Wakes who applies events.
    pub event_stored: Arc<Notify>,
    /// Longest time one call may take.
    pub request_timeout: Duration,
    /// Which URLs customers' endpoints may have.
    pub webhook_policy: Policy,
}

/// Longest message: a webhook, with its signature.
const MAX_MESSAGE_BYTES: usize = MAX_WEBHOOK_BYTES + 16 * 1024;

/// The tonic server: message sizes bounded, compressed requests accepted.
pub fn server(service: Service) -> BySize<BillingServiceServer<Service>> {
    let service = Arc::new(service);
    let bounded = |max_bytes| {
        BillingServiceServer::from_arc(service.clone())
            .max_decoding_message_size(max_bytes)
            .accept_compressed(CompressionEncoding::Zstd)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip)
    };
    BySize::new(bounded, MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl BillingService for Service {
    async fn process_overage(
        &self,
        request: Request<ProcessOverageRequest>,
    ) -> Result<Response<ProcessOverageResponse>, Status> {
        may_run(&Caller::of(&request)?, request.get_ref().dry_run)?;
        let started = Instant::now();
        let wait_until = started + deadline::patience(request.metadata(), self.request_timeout);
        let asked = overage::process_request(request.into_inner()).map_err(Error::from)?;
        if asked.dry_run {
            let accounts = asked.run.accounts.as_deref();
            let dry_run = app::process_overage::dry_run(&self.pool, accounts).await?;
            return Ok(Response::new(overage::planned(dry_run, started.elapsed())));
        }
        let answer = self.engine.process(asked.run, Uuid::now_v7(), wait_until).await?;
        let mut response = overage::processed(answer);
        if let Ok(run_id) = response.run_id.parse() {
            let mut totals = app::list_runs::totals(&self.pool, &[run_id]).await?;
            response.totals = overage::totals(totals.remove(&run_id).unwrap_or_default());
        }
        Ok(Response::new(response))
    }

    async fn get_overage(
        &self,
        request: Request<GetOverageRequest>,
    ) -> Result<Response<GetOverageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let eco_id = caller.account(&request.get_ref().eco_id, &[Scope::BillingRun])?;
        let (facts, cap) = app::get_overage::run(&self.pool, &eco_id).await?;
        Ok(Response::new(overage::overage(facts, cap)?))
    }

    async fn list_charges(
        &self,
        request: Request<ListChargesRequest>,
    ) -> Result<Response<ListChargesResponse>, Status> {
        let asked = overage::charge_page(&Caller::of(&request)?, request.get_ref())?;
        let (charges, next) =
            app::list_charges::run(&self.pool, &asked.eco_id, asked.after.as_ref(), asked.size).await?;
        Ok(Response::new(ListChargesResponse {
            charges: charges.into_iter().map(overage::charge).collect(),
            next_page_token: next.map(|cursor| page::encode(&asked.eco_id, &cursor)).unwrap_or_default(),
        }))
    }

    async fn explain_charge(
        &self,
        request: Request<ExplainChargeRequest>,
    ) -> Result<Response<ExplainChargeResponse>, Status> {
        let caller = Caller::of(&request)?;
        let charge_id = ledger::charge_id(&request.get_ref().charge_id).map_err(Error::from)?;
        let for_caller = |eco_id: &str| caller.account(eco_id, &[Scope::BillingRun]).is_ok();
        let (charge, kept) = app::explain_charge::run(&self.pool, charge_id, for_caller).await?;
        Ok(Response::new(ledger::explanation(charge, &kept)?))
    }

    async fn reconcile(
        &self,
        request: Request<ReconcileRequest>,
    ) -> Result<Response<ReconcileResponse>, Status> {
        let caller = Caller::of(&request)?;
        may_run(&caller, !request.get_ref().repair)?;
        let wait_until = Instant::now() + deadline::patience(request.metadata(), self.request_timeout);
        let asked = reconcile::request(request.into_inner(), caller.subject()).map_err(Error::from)?;
        let answer = self.reconciler.reconcile(asked, Uuid::now_v7(), wait_until).await?;
        Ok(Response::new(reconcile::response(answer)))
    }

    async fn retry_charge(
        &self,
        request: Request<RetryChargeRequest>,
    ) -> Result<Response<RetryChargeResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_scope(Scope::BillingRun)?;
        let (charge_id, request_id) = ledger::retry(request.get_ref()).map_err(Error::from)?;
        let charge = app::retry_charge::run(&self.pool, charge_id, request_id, &caller.subject()).await?;
        Ok(Response::new(RetryChargeResponse { charge: Some(overage::charge(charge)) }))
    }

    async fn handle_stripe_event(
        &self,
        request: Request<HandleStripeEventRequest>,
    ) -> Result<Response<HandleStripeEventResponse>, Status> {
        Caller::of(&request)?.require_scope(Scope::BillingRun)?;
        let HandleStripeEventRequest { payload, signature } = request.into_inner();
        let stored =
            app::handle_stripe_event::run(&self.pool, &self.webhook_secrets, &signature, &payload).await?;
        self.event_stored.notify_one();
        Ok(Response::new(HandleStripeEventResponse {
            stripe_event_id: stored.event_id,
            duplicate: stored.duplicate,
        }))
    }

    async fn create_account(
        &self,
        request: Request<CreateAccountRequest>,
    ) -> Result<Response<CreateAccountResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_admin_or(&[Scope::AccountsWrite])?;
        let new = accounts::new_account(request.get_ref(), &mut rand::rng()).map_err(Error::from)?;
        let account = app::create_account::run(&self.sales, &new, &caller.subject()).await?;
        Ok(Response::new(CreateAccountResponse { account: Some(accounts::account(account)) }))
    }

    async fn get_account(
        &self,
        request: Request<GetAccountRequest>,
    ) -> Result<Response<GetAccountResponse>, Status> {
        let eco_id = Caller::of(&request)?.account(&request.get_ref().eco_id, &[Scope::AccountsWrite])?;
        let account = app::get_account::run(&self.pool, &eco_id).await?;
        Ok(Response::new(GetAccountResponse { account: Some(accounts::account(account)) }))
    }

    async fn list_accounts(
        &self,
        request: Request<ListAccountsRequest>,
    ) -> Result<Response<ListAccountsResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[Scope::AccountsWrite])?;
        let asked = accounts::account_page(request.get_ref()).map_err(Error::from)?;
        let (found, next) =
            app::list_accounts::run(&self.pool, asked.plan, asked.after.as_ref(), asked.size).await?;
        Ok(Response::new(ListAccountsResponse {
            accounts: found.into_iter().map(accounts::account).collect(),
            next_page_token: next.map(|cursor| page::encode(&asked.plan, &cursor)).unwrap_or_default(),
        }))
    }

    async fn list_audit_log(
        &self,
        request: Request<ListAuditLogRequest>,
    ) -> Result<Response<ListAuditLogResponse>, Status> {
        Caller::of(&request)?.require_admin_or(&[])?;
        let asked = ledger::audit_page(request.get_ref()).map_err(Error::from)?;
        let (entries, next) =
            app::list_audit_log::run(&self.pool, asked.eco_id.as_ref(), asked.before, asked.size).await?;
        Ok(Response::new(ListAuditLogResponse {
            entries: entries.into_iter().map(ledger::audit_entry).collect(),
            next_page_token: next.map(|before| page::encode(&asked.eco_id, &before)).unwrap_or_default(),
        }))
    }

    async fn close_account(
        &self,
        request: Request<CloseAccountRequest>,
    ) -> Result<Response<CloseAccountResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_admin_or(&[Scope::AccountsWrite])?;
        let eco_id = accounts::to_close(request.get_ref()).map_err(Error::from)?;
        let account = app::close_account::run(&self.sales, &eco_id, &caller.subject()).await?;
        Ok(Response::new(CloseAccountResponse { account: Some(accounts::account(account)) }))
    }

    async fn change_plan(
        &self,
        request: Request<ChangePlanRequest>,
    ) -> Result<Response<ChangePlanResponse>, Status> {
        let caller = Caller::of(&request)?;
        let change = accounts::plan_change(&caller, request.get_ref())?;
        let changed = app::change_plan::run(&self.sales, &change, &caller.subject()).await?;
        Ok(Response::new(accounts::plan_changed(changed)))
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<GetSubscriptionResponse>, Status> {
        subscriptions::get(self, &request).await
    }

    async fn create_checkout_session(
        &self,
        request: Request<CreateCheckoutSessionRequest>,
    ) -> Result<Response<CreateCheckoutSessionResponse>, Status> {
        subscriptions::open_checkout(self, &request).await
    }

    async fn cancel_subscription(
        &self,
        request: Request<CancelSubscriptionRequest>,
    ) -> Result<Response<CancelSubscriptionResponse>, Status> {
        subscriptions::cancel(self, &request).await
    }

    async fn reactivate_subscription(
        &self,
        request: Request<ReactivateSubscriptionRequest>,
    ) -> Result<Response<ReactivateSubscriptionResponse>, Status> {
        subscriptions::reactivate(self, &request).await
    }

    async fn set_spend_cap(
        &self,
        request: Request<SetSpendCapRequest>,
    ) -> Result<Response<SetSpendCapResponse>, Status> {
        let caller = Caller::of(&request)?;
        let change = accounts::spend_cap_change(&caller, request.get_ref())?;
        let account = app::set_spend_cap::run(&self.pool, &change, &caller.subject()).await?;
        Ok(Response::new(SetSpendCapResponse { account: Some(accounts::account(account)) }))
    }

    async fn adjust_usage(
        &self,
        request: Request<AdjustUsageRequest>,
    ) -> Result<Response<AdjustUsageResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_admin_or(&[])?;
        let adjustment = ledger::adjustment(request.into_inner()).map_err(Error::from)?;
        let api_calls_count = app::adjust_usage::run(&self.pool, &adjustment, &caller.subject()).await?;
        Ok(Response::new(AdjustUsageResponse { api_calls_count }))
    }

    async fn list_plans(
        &self,
        request: Request<ListPlansRequest>,
    ) -> Result<Response<ListPlansResponse>, Status> {
        let (size, after) = accounts::plan_page(request.get_ref()).map_err(Error::from)?;
        let (plans, next) = app::list_plans::run(&self.pool, after, size).await?;
        Ok(Response::new(ListPlansResponse {
            plans: plans.into_iter().map(accounts::plan_version).collect(),
            next_page_token: next.map(|plan| page::encode(&"plans", &plan)).unwrap_or_default(),
        }))
    }

    async fn upsert_plan(
        &self,
        request: Request<UpsertPlanRequest>,
    ) -> Result<Response<UpsertPlanResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_admin_or(&[])?;
        let (new, request_id) = accounts::new_version(request.into_inner()).map_err(Error::from)?;
        let version = app::upsert_plan::run(&self.pool, &new, request_id, &caller.subject()).await?;
        Ok(Response::new(UpsertPlanResponse { plan: Some(accounts::plan_version(version)) }))
    }

    type WatchOverageRunStream = BoxStream<'static, Result<WatchOverageRunResponse, Status>>;

    async fn watch_overage_run(
        &self,
        request: Request<WatchOverageRunRequest>,
    ) -> Result<Response<Self::WatchOverageRunStream>, Status> {
        Caller::of(&request)?.require_admin_or(&[Scope::BillingRun])?;
        let run_id = runs::run_id(&request.get_ref().run_id).map_err(Error::from)?;
        let looks = self.engine.clone().watch(run_id).await?;
        Ok(Response::new(looks.map(|look| look.map(runs::watched).map_err(Status::from)).boxed()))
    }

    async fn get_overage_run(
        &self,
        request: Request<GetOverageRunRequest>,
    ) -> Result<Response<GetOverageRunResponse>, Status> {
        runs::get(self, &request).await
    }

    async fn list_overage_runs(
        &self,
        request: Request<ListOverageRunsRequest>,
    ) -> Result<Response<ListOverageRunsResponse>, Status> {
        runs::list(self, &request).await
    }

    async fn list_overage_run_errors(
        &self,
        request: Request<ListOverageRunErrorsRequest>,
    ) -> Result<Response<ListOverageRunErrorsResponse>, Status> {
        runs::list_errors(self, &request).await
    }

    async fn list_reconciliations(
        &self,
        request: Request<ListReconciliationsRequest>,
    ) -> Result<Response<ListReconciliationsResponse>, Status> {
        reconciliations::list(self, &request).await
    }

    async fn list_invoices(
        &self,
        request: Request<ListInvoicesRequest>,
    ) -> Result<Response<ListInvoicesResponse>, Status> {
        invoices::list(self, &request).await
    }

    async fn create_webhook_endpoint(
        &self,
        request: Request<CreateWebhookEndpointRequest>,
    ) -> Result<Response<CreateWebhookEndpointResponse>, Status> {
        webhooks::create(self, &request).await
    }

    async fn list_webhook_endpoints(
        &self,
        request: Request<ListWebhookEndpointsRequest>,
    ) -> Result<Response<ListWebhookEndpointsResponse>, Status> {
        webhooks::list(self, &request).await
    }

    async fn update_webhook_endpoint(
        &self,
        request: Request<UpdateWebhookEndpointRequest>,
    ) -> Result<Response<UpdateWebhookEndpointResponse>, Status> {
        webhooks::update(self, &request).await
    }

    async fn delete_webhook_endpoint(
        &self,
        request: Request<DeleteWebhookEndpointRequest>,
    ) -> Result<Response<DeleteWebhookEndpointResponse>, Status> {
        webhooks::delete(self, &request).await
    }

    async fn rotate_webhook_secret(
        &self,
        request: Request<RotateWebhookSecretRequest>,
    ) -> Result<Response<RotateWebhookSecretResponse>, Status> {
        webhooks::rotate(self, &request).await
    }

    async fn list_webhook_deliveries(
        &self,
        request: Request<ListWebhookDeliveriesRequest>,
    ) -> Result<Response<ListWebhookDeliveriesResponse>, Status> {
        webhooks::deliveries(self, &request).await
    }

    async fn redeliver_webhook(
        &self,
        request: Request<RedeliverWebhookRequest>,
    ) -> Result<Response<RedeliverWebhookResponse>, Status> {
        webhooks::redeliver(self, &request).await
    }

    async fn send_test_webhook(
        &self,
        request: Request<SendTestWebhookRequest>,
    ) -> Result<Response<SendTestWebhookResponse>, Status> {
        webhooks::test(self, &request).await
    }

    async fn get_usage_thresholds(
        &self,
        request: Request<GetUsageThresholdsRequest>,
    ) -> Result<Response<GetUsageThresholdsResponse>, Status> {
        webhooks::thresholds(self, &request).await
    }

    async fn set_usage_thresholds(
        &self,
        request: Request<SetUsageThresholdsRequest>,
    ) -> Result<Response<SetUsageThresholdsResponse>, Status> {
        webhooks::set_thresholds(self, &request).await
    }
}

/// What is only looked at, an admin may see as well.
fn may_run(caller: &Caller, looks_only: bool) -> Result<(), Status> {
    if looks_only {
        caller.require_admin_or(&[Scope::BillingRun])
    } else {
        caller.require_scope(Scope::BillingRun)
    }
}
