use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, bail};
use nexus_billing::{
    config::StripeArgs,
    domain::charge::InvoiceItem,
    payments::{Outcome, Payments, stripe::Stripe},
};
use nexus_kit::{config::TelemetryArgs, serve::Listeners, telemetry};
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    measure::{Latencies, Report},
    process::{self, listening, listening_with_operations},
};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// billing-svc, as it is deployed.
#[derive(clap::Args)]
pub(crate) struct Billing {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_billing::Config,
}

impl Billing {
    pub(super) async fn run(self) -> Result<()> {
        let telemetry = telemetry::init(&self.telemetry, "nexus-billing")?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let shutdown = listening_with_operations(listeners.main_addr()?, listeners.operations_addr()?);
        let served = nexus_billing::serve(self.config, listeners, shutdown).await;
        telemetry.shutdown();
        Ok(served?)
    }
}

/// The stand-in Stripe.
#[derive(clap::Args)]
pub(crate) struct Sim {
    #[command(flatten)]
    config: stripe_sim::Config,
}

impl Sim {
    pub(super) async fn run(self) -> Result<()> {
        let listener = TcpListener::bind(ANY_PORT).await?;
        let shutdown = listening(listener.local_addr()?);
        Ok(stripe_sim::serve(self.config, listener, shutdown).await?)
    }
}

/// Makes customers, and says their ids.
#[derive(clap::Args)]
pub(crate) struct Customers {
    #[arg(long)]
    url: String,
    #[arg(long)]
    key: String,
    #[arg(long)]
    count: u32,
}

#[derive(Deserialize)]
struct Customer {
    id: String,
}

impl Customers {
    pub(super) async fn run(self) -> Result<()> {
        let client = reqwest::Client::new();
        let left = Arc::new(AtomicU32::new(self.count));
        let mut makers = JoinSet::new();
        for _ in 0..16 {
            let (client, left) = (client.clone(), left.clone());
            let request = client.post(format!("{}/v1/customers", self.url)).bearer_auth(&self.key);
            let request = request.form(&[("email", "bench@example.com")]).build()?;
            makers.spawn(async move {
                let mut ids = Vec::new();
                while take(&left) {
                    let request = request.try_clone().context("a request that can be made again")?;
                    let made: Customer = client.execute(request).await?.error_for_status()?.json().await?;
                    ids.push(made.id);
                }
                anyhow::Ok(ids)
            });
        }
        let mut all = Vec::new();
        for ids in makers.join_all().await {
            all.extend(ids?);
        }
        process::report(&all)
    }
}

/// Makes invoice items through the port, without a ledger: as fast as charging could be.
#[derive(clap::Args)]
pub(crate) struct ItemLoad {
    #[command(flatten)]
    stripe: StripeArgs,
    #[arg(long)]
    customer: String,
    #[arg(long)]
    count: u32,
    #[arg(long)]
    in_flight: u32,
}

impl ItemLoad {
    pub(super) async fn run(self) -> Result<()> {
        let stripe = Arc::new(Stripe::new(&self.stripe)?);
        let left = Arc::new(AtomicU32::new(self.count));
        let item = Arc::new(InvoiceItem {
            customer: self.customer,
            subscription: None,
            invoice: None,
            amount_minor: 10,
            currency: "USD".to_owned(),
            description: "API overage: 100 calls beyond 100k limit".to_owned(),
            metadata: ["eco_id", "overage_calls", "billing_period_start", "billing_period_end", "charge_id"]
                .map(|key| (key.to_owned(), "2026-11-01T00:00:00Z".to_owned()))
                .into(),
        });
        let started = Instant::now();
        let mut makers = JoinSet::new();
        for _ in 0..self.in_flight {
            let (stripe, left, item) = (stripe.clone(), left.clone(), item.clone());
            makers.spawn(async move {
                let mut latencies = Latencies::new()?;
                while take(&left) {
                    let key = uuid::Uuid::new_v4().to_string();
                    let sent = Instant::now();
                    match stripe.create_invoice_item(&item, &key).await {
                        Outcome::Succeeded { .. } => latencies.record(sent.elapsed())?,
                        other => bail!("an item was not made: {other:?}"),
                    }
                }
                Ok(latencies)
            });
        }
        let mut latencies = Latencies::new()?;
        for made in makers.join_all().await {
            latencies.merge(&made?)?;
        }
        process::report(&Report::new(self.count.into(), started.elapsed(), &latencies))
    }
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
