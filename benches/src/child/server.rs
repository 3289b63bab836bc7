use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;
use nexus_kit::{
    auth::Authenticator,
    config::{AuthArgs, ServeArgs, TelemetryArgs},
    metrics::Metrics,
    serve::{CONNECTION_AGE, GrpcServer, Listeners},
    telemetry,
};
use nexus_proto::usage::v1::CheckQuotaResponse;
use prost::Message;
use tokio::net::TcpListener;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use super::echo;
use crate::process::listening;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(clap::Args)]
pub(crate) struct Usage {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_usage::Config,
}

impl Usage {
    pub(super) async fn run(self) -> Result<()> {
        let telemetry = telemetry::init(&self.telemetry, "nexus-usage")?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let shutdown = listening(listeners.main_addr()?);
        let served = nexus_usage::serve(self.config, listeners, shutdown).await;
        telemetry.shutdown();
        Ok(served?)
    }
}

#[derive(clap::Args)]
pub(crate) struct Echo {
    /// The answer, encoded, in hexadecimal
    #[arg(long, value_parser = answer)]
    answer: Arc<CheckQuotaResponse>,
}

impl Echo {
    pub(super) async fn run(self) -> Result<()> {
        let listener = TcpListener::bind(ANY_PORT).await?;
        let shutdown = listening(listener.local_addr()?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().add_service(echo::Echo { answer: self.answer });
        Ok(server.serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned()).await?)
    }
}

#[derive(clap::Args)]
pub(crate) struct LayeredEcho {
    #[command(flatten)]
    echo: Echo,
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    serve: ServeArgs,
}

impl LayeredEcho {
    pub(super) async fn run(self) -> Result<()> {
        let telemetry = telemetry::init(&self.telemetry, "nexus-bench-echo")?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let shutdown = listening(listeners.main_addr()?);
        let server = GrpcServer {
            routes: Routes::new(echo::Echo { answer: self.echo.answer }),
            services: &["nexus.usage.v1.UsageService"],
            auth: Arc::new(Authenticator::new(&self.auth)?),
            api_keys: None,
            metrics: Metrics::new(),
            args: self.serve,
            connection_age: CONNECTION_AGE,
            readiness: Arc::new(|| Box::pin(async { Ok(()) })),
        };
        let served = server.serve(listeners, shutdown).await;
        telemetry.shutdown();
        Ok(served?)
    }
}

fn answer(text: &str) -> Result<Arc<CheckQuotaResponse>> {
    Ok(Arc::new(CheckQuotaResponse::decode(hex::decode(text)?.as_slice())?))
}
