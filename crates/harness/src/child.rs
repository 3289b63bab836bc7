//! What this program does when it is started as a replica or as a client.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use chrono::Utc;
use nexus_kit::{
    config::TelemetryArgs,
    serve::{self, Listeners},
};

use crate::{client, process};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(clap::Subcommand)]
pub(crate) enum Child {
    /// usage-svc, as its own program runs it, on free ports
    Usage(Box<Usage>),
    /// billing-svc, as its own program runs it, on free ports
    Billing(Box<Billing>),
    /// Records calls and keeps a journal
    Client(client::Args),
}

#[derive(clap::Args)]
pub(crate) struct Usage {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_usage::Config,
}

#[derive(clap::Args)]
pub(crate) struct Billing {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_billing::Config,
}

impl Child {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Child::Usage(usage) => usage.run().await,
            Child::Billing(billing) => billing.run().await,
            Child::Client(args) => client::run(args).await.map(|()| ExitCode::SUCCESS),
        }
    }
}

impl Usage {
    async fn run(self) -> anyhow::Result<ExitCode> {
        process::die_with_parent()?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let (address, operations) = (listeners.main_addr()?, listeners.operations_addr()?);
        let serving = |shutdown| {
            // Where it is, and what time it is there; said once it can be asked to stop.
            println!("{address} {operations} {}", Utc::now().to_rfc3339());
            nexus_usage::serve(self.config, listeners, shutdown)
        };
        Ok(serve::run("nexus-usage", &self.telemetry, serving).await)
    }
}

impl Billing {
    async fn run(self) -> anyhow::Result<ExitCode> {
        process::die_with_parent()?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let address = listeners.main_addr()?;
        let serving = |shutdown| {
            println!("{address}");
            nexus_billing::serve(self.config, listeners, shutdown)
        };
        Ok(serve::run("nexus-billing", &self.telemetry, serving).await)
    }
}
