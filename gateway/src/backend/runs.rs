//! Runs of billing, and whether the records agree, for admins.

use std::time::Duration;

use nexus_proto::billing::v1 as billing;
use tonic::{Code, Status};

use super::{Backend, left_out, refused};
use crate::{auth::User, error::Error};

/// How long a page waits for what goes on without it.
const OF_A_PAGE: Duration = Duration::from_secs(10);

const NO_RUN: &str = "Run not found";

impl Backend {
    /// A page of the runs of billing.
    pub async fn runs(
        &self,
        admin: &User,
        page_token: &str,
    ) -> Result<billing::ListOverageRunsResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListOverageRunsRequest { page_size: 20, page_token: page_token.to_owned() };
        let send = |r| async move { client.list_overage_runs(r).await };
        let answer = self.ask("BillingService.ListOverageRuns", admin, request, send).await;
        answer.map_err(refused(NO_RUN))
    }

    /// A run of billing.
    pub async fn run(&self, admin: &User, run_id: &str) -> Result<billing::OverageRun, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::GetOverageRunRequest { run_id: run_id.to_owned() };
        let send = |r| async move { client.get_overage_run(r).await };
        let answer = self.ask("BillingService.GetOverageRun", admin, request, send).await;
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
        let answer = self.ask("BillingService.ListOverageRunErrors", admin, request, send).await;
        answer.map_err(no_such_run)
    }

    /// What a run of billing would charge.
    pub async fn dry_run(&self, admin: &User) -> Result<billing::ProcessOverageResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ProcessOverageRequest { dry_run: true, ..Default::default() };
        let send = |r| async move { client.process_overage(r).await };
        let answer = self.ask("BillingService.ProcessOverage", admin, request, send).await;
        answer.map_err(refused("Not found"))
    }

    /// Compares the records with each other and with Stripe, and repairs nothing.
    pub async fn compare(&self, admin: &User, request_id: &str) -> Result<billing::ReconcileResponse, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ReconcileRequest { request_id: request_id.to_owned(), ..Default::default() };
        let send = |r| async move { client.reconcile(r).await };
        let rpc = "BillingService.Reconcile";
        let patience = self.patience(rpc).min(OF_A_PAGE);
        let answer = self.ask_within(patience, rpc, admin, request, send).await;
        answer.map_err(refused("Not found"))
    }
}

impl Backend {
    /// The newest reconciliations.
    pub async fn reconciliations(&self, admin: &User) -> Result<Vec<billing::Reconciliation>, Error> {
        let mut client = self.users.billing.clone();
        let request = billing::ListReconciliationsRequest { page_size: 5, page_token: String::new() };
        let send = |r| async move { client.list_reconciliations(r).await };
        let answer = self.ask("BillingService.ListReconciliations", admin, request, send).await;
        Ok(answer.map_err(refused("Not found"))?.reconciliations)
    }
}

/// What is no id of a run is one that does not exist.
fn no_such_run(status: Status) -> Error {
    if status.code() == Code::InvalidArgument { Error::NotFound(NO_RUN) } else { refused(NO_RUN)(status) }
}
