//! The gRPC side: each RPC says who may call, parses, runs one use case and converts the answer.

use nexus_kit::{serve::MAX_MESSAGE_BYTES, status};
use nexus_proto::billing::v1::{
    billing_service_server::{BillingService, BillingServiceServer},
    *,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status, codec::CompressionEncoding};

/// The service.
pub struct Service {
    /// Connections that act as the service's role.
    pub pool: PgPool,
}

/// The tonic server: message sizes bounded, compressed requests accepted.
pub fn server(service: Service) -> BillingServiceServer<Service> {
    BillingServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

#[tonic::async_trait]
impl BillingService for Service {
    async fn process_overage(
        &self,
        _request: Request<ProcessOverageRequest>,
    ) -> Result<Response<ProcessOverageResponse>, Status> {
        Err(status::not_implemented("ProcessOverage"))
    }

    async fn get_overage(
        &self,
        _request: Request<GetOverageRequest>,
    ) -> Result<Response<GetOverageResponse>, Status> {
        Err(status::not_implemented("GetOverage"))
    }

    async fn list_charges(
        &self,
        _request: Request<ListChargesRequest>,
    ) -> Result<Response<ListChargesResponse>, Status> {
        Err(status::not_implemented("ListCharges"))
    }

    async fn explain_charge(
        &self,
        _request: Request<ExplainChargeRequest>,
    ) -> Result<Response<ExplainChargeResponse>, Status> {
        Err(status::not_implemented("ExplainCharge"))
    }

    async fn reconcile(
        &self,
        _request: Request<ReconcileRequest>,
    ) -> Result<Response<ReconcileResponse>, Status> {
        Err(status::not_implemented("Reconcile"))
    }

    async fn retry_charge(
        &self,
        _request: Request<RetryChargeRequest>,
    ) -> Result<Response<RetryChargeResponse>, Status> {
        Err(status::not_implemented("RetryCharge"))
    }

    async fn handle_stripe_event(
        &self,
        _request: Request<HandleStripeEventRequest>,
    ) -> Result<Response<HandleStripeEventResponse>, Status> {
        Err(status::not_implemented("HandleStripeEvent"))
    }

    async fn create_account(
        &self,
        _request: Request<CreateAccountRequest>,
    ) -> Result<Response<CreateAccountResponse>, Status> {
        Err(status::not_implemented("CreateAccount"))
    }

    async fn get_account(
        &self,
        _request: Request<GetAccountRequest>,
    ) -> Result<Response<GetAccountResponse>, Status> {
        Err(status::not_implemented("GetAccount"))
    }

    async fn list_accounts(
        &self,
        _request: Request<ListAccountsRequest>,
    ) -> Result<Response<ListAccountsResponse>, Status> {
        Err(status::not_implemented("ListAccounts"))
    }

    async fn close_account(
        &self,
        _request: Request<CloseAccountRequest>,
    ) -> Result<Response<CloseAccountResponse>, Status> {
        Err(status::not_implemented("CloseAccount"))
    }

    async fn change_plan(
        &self,
        _request: Request<ChangePlanRequest>,
    ) -> Result<Response<ChangePlanResponse>, Status> {
        Err(status::not_implemented("ChangePlan"))
    }

    async fn adjust_usage(
        &self,
        _request: Request<AdjustUsageRequest>,
    ) -> Result<Response<AdjustUsageResponse>, Status> {
        Err(status::not_implemented("AdjustUsage"))
    }

    async fn list_plans(
        &self,
        _request: Request<ListPlansRequest>,
    ) -> Result<Response<ListPlansResponse>, Status> {
        Err(status::not_implemented("ListPlans"))
    }

    async fn upsert_plan(
        &self,
        _request: Request<UpsertPlanRequest>,
    ) -> Result<Response<UpsertPlanResponse>, Status> {
        Err(status::not_implemented("UpsertPlan"))
    }

    type WatchOverageRunStream = tokio_stream::Empty<Result<WatchOverageRunResponse, Status>>;

    async fn watch_overage_run(
        &self,
        _request: Request<WatchOverageRunRequest>,
    ) -> Result<Response<Self::WatchOverageRunStream>, Status> {
        Err(status::not_implemented("WatchOverageRun"))
    }
}
