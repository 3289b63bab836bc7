//! A billing-svc in a process of its own, and what is asked of it.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use nexus_client::CallOptions;
use nexus_proto::billing::v1::{
    AdjustUsageRequest, ChangePlanRequest, HandleStripeEventRequest, ListOverageRunErrorsRequest,
    ListOverageRunErrorsResponse, ProcessOverageRequest, ProcessOverageResponse, ReconcileRequest,
    ReconcileResponse, RetryChargeRequest, WatchOverageRunRequest, WatchOverageRunResponse,
    billing_service_client::BillingServiceClient,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    process::{self, Environment},
    stage,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(50);

pub(crate) struct Billing {
    child: Child,
    pub(crate) client: Client,
}

/// Calls one; as many as there are clones may be under way at once.
#[derive(Clone)]
pub(crate) struct Client {
    client: BillingServiceClient<Channel>,
    service: CallOptions,
    admin: CallOptions,
}

impl Billing {
    /// Starts one with these settings and its log in this file, and returns once it listens.
    pub(crate) async fn start(log: &Path, settings: Environment) -> Result<Self> {
        let environment = [settings, stage::secrets().into()].concat();
        let mut child =
            process::command(&["child", "billing"], &environment, log)?.stdin(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line).await?;
        let address = line.trim();
        if address.is_empty() {
            bail!("no billing-svc; see {}", log.display());
        }
        let client = nexus_client::billing(nexus_client::channel(&format!("http://{address}"))?);
        let service = CallOptions::bearer(&stage::token()?, CALL_TIMEOUT)?;
        let admin = CallOptions::bearer(&stage::admin_token()?, CALL_TIMEOUT)?;
        Ok(Self { child, client: Client { client, service, admin } })
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// The memory it has.
    pub(crate) fn resident_mb(&self) -> Result<u64> {
        let pid = self.child.id().context("billing-svc has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024 / 1_000_000)
    }
}

impl Client {
    pub(crate) async fn process(
        &mut self,
        request: ProcessOverageRequest,
    ) -> Result<ProcessOverageResponse, Status> {
        Ok(self.client.process_overage(self.service.request(request)).await?.into_inner())
    }

    pub(crate) async fn watch(
        &mut self,
        request: WatchOverageRunRequest,
    ) -> Result<Streaming<WatchOverageRunResponse>> {
        Ok(self.client.watch_overage_run(self.service.endless(request)).await?.into_inner())
    }

    pub(crate) async fn errors(
        &mut self,
        request: ListOverageRunErrorsRequest,
    ) -> Result<ListOverageRunErrorsResponse> {
        Ok(self.client.list_overage_run_errors(self.service.request(request)).await?.into_inner())
    }

    pub(crate) async fn reconcile(&mut self, request: ReconcileRequest) -> Result<ReconcileResponse> {
        Ok(self.client.reconcile(self.service.request(request)).await?.into_inner())
    }

    pub(crate) async fn adjust(&mut self, request: AdjustUsageRequest) -> Result<(), Status> {
        self.client.adjust_usage(self.admin.request(request)).await.map(drop)
    }

    pub(crate) async fn retry(&mut self, request: RetryChargeRequest) -> Result<(), Status> {
        self.client.retry_charge(self.service.request(request)).await.map(drop)
    }

    pub(crate) async fn hear(&mut self, request: HandleStripeEventRequest) -> Result<(), Status> {
        self.client.handle_stripe_event(self.service.request(request)).await.map(drop)
    }

    pub(crate) async fn change_plan(&mut self, request: ChangePlanRequest) -> Result<(), Status> {
        self.client.change_plan(self.admin.request(request)).await.map(drop)
    }
}
