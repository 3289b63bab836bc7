//! Waits until all servers say that they serve.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nexus_client::CallOptions;
use tokio::time::{Instant, sleep, timeout_at};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::ports::Addresses;

const WITHIN: Duration = Duration::from_secs(30);

/// Waits until the three services and the gateway serve.
pub(crate) async fn all_serving(addresses: &Addresses, service_token: &str) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    let options = CallOptions::bearer(service_token, WITHIN)?;
    for (name, address) in [
        ("usage-svc", addresses.usage),
        ("billing-svc", addresses.billing),
        ("analytics-svc", addresses.analytics),
    ] {
        let serving = timeout_at(deadline, serving(address.main, &options)).await;
        serving.with_context(|| format!("{name} did not serve within {WITHIN:?}"))??;
    }
    gateway_ready(addresses.gateway.operations, deadline).await
}

/// Follows a server's health until it serves.
async fn serving(address: SocketAddr, options: &CallOptions) -> Result<()> {
    let mut client = HealthClient::new(nexus_client::channel(&format!("http://{address}"))?);
    let mut states = client.watch(options.request(HealthCheckRequest::default())).await?.into_inner();
    while let Some(state) = states.message().await? {
        if state.status() == ServingStatus::Serving {
            return Ok(());
        }
    }
    bail!("the server at {address} ended its health stream");
}

/// The gateway has no gRPC health; it is asked until it is ready.
async fn gateway_ready(operations: SocketAddr, deadline: Instant) -> Result<()> {
    let url = format!("http://{operations}/readyz");
    loop {
        let response =
            timeout_at(deadline, reqwest::get(&url)).await.context("the gateway did not answer")?;
        if response.context("asking whether the gateway is ready")?.status().is_success() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the gateway was not ready within {WITHIN:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
