//! A billing-svc in a process of its own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nexus_client::CallOptions;
use nexus_proto::billing::v1::{
    ListOverageRunErrorsRequest, ListOverageRunErrorsResponse, ProcessOverageRequest, ProcessOverageResponse,
    WatchOverageRunRequest, WatchOverageRunResponse, billing_service_client::BillingServiceClient,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};
use tonic::{Streaming, transport::Channel};

use crate::{
    process,
    stage::{self, Seed},
};

const CALL_TIMEOUT: Duration = Duration::from_secs(50);
/// Accounts that a run works on at once.
const CONCURRENCY: u32 = 32;

pub(super) struct Billing {
    child: Child,
    client: BillingServiceClient<Channel>,
    options: CallOptions,
}

impl Billing {
    /// Starts one, and returns once it listens.
    pub(super) async fn start(seed: &Seed, stripe: &str, rate: u32) -> Result<Self> {
        let settings = vec![
            ("DATABASE_URL", seed.url().to_owned()),
            ("STRIPE_SECRET_KEY", super::stripe::KEY.to_owned()),
            ("STRIPE_API_BASE", stripe.to_owned()),
            ("STRIPE_RATE_PER_SECOND", rate.to_string()),
            ("OVERAGE_CONCURRENCY", CONCURRENCY.to_string()),
        ];
        let environment = [settings, stage::secrets().into()].concat();
        let log = seed.folder.join("billing.log");
        let mut child = process::command(&["child", "billing"], &environment, &log)?
            .stdin(std::process::Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line).await?;
        let address = line.trim();
        if address.is_empty() {
            bail!("no billing-svc; see {}", log.display());
        }
        let client = nexus_client::billing(nexus_client::channel(&format!("http://{address}"))?);
        Ok(Self { child, client, options: CallOptions::bearer(&stage::token()?, CALL_TIMEOUT)? })
    }

    /// kill -9.
    pub(super) async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    pub(super) async fn process(&mut self, request: ProcessOverageRequest) -> Result<ProcessOverageResponse> {
        Ok(self.client.process_overage(self.options.request(request)).await?.into_inner())
    }

    pub(super) async fn watch(
        &mut self,
        request: WatchOverageRunRequest,
    ) -> Result<Streaming<WatchOverageRunResponse>> {
        Ok(self.client.watch_overage_run(self.options.endless(request)).await?.into_inner())
    }

    pub(super) async fn errors(
        &mut self,
        request: ListOverageRunErrorsRequest,
    ) -> Result<ListOverageRunErrorsResponse> {
        Ok(self.client.list_overage_run_errors(self.options.request(request)).await?.into_inner())
    }

    /// The memory it has.
    pub(super) fn resident_mb(&self) -> Result<u64> {
        let pid = self.child.id().context("billing-svc has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024 / 1_000_000)
    }
}
