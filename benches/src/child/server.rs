use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;
use nexus_kit::{
    auth::Authenticator,
    config::{AuthArgs, ServeArgs, TelemetryArgs},
    descriptors::connection_places,
    metrics::Metrics,
    serve::{CONNECTION_AGE, GrpcServer, Listeners},
    telemetry,
    turn::Turns,
};
use nexus_proto::usage::v1::CheckQuotaResponse;
use prost::Message;
use tokio::net::TcpListener;
use tonic::{
    body::Body,
    server::NamedService,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tower::Service;

use super::{echo, rate_limit};
use crate::process::{listening, listening_with_operations};

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
        let shutdown = listening_with_operations(listeners.main_addr()?, listeners.operations_addr()?);
        let served = nexus_usage::serve(self.config, listeners, shutdown).await;
        telemetry.shutdown();
        Ok(served?)
    }
}

#[derive(clap::Args)]
pub(crate) struct Analytics {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_analytics::Config,
}

impl Analytics {
    pub(super) async fn run(self) -> Result<()> {
        let telemetry = telemetry::init(&self.telemetry, "nexus-analytics")?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let shutdown = listening_with_operations(listeners.main_addr()?, listeners.operations_addr()?);
        let served = nexus_analytics::serve(self.config, listeners, shutdown).await;
        telemetry.shutdown();
        Ok(served?)
    }
}

/// Serves one service on nothing but tonic.
pub(super) async fn serve_bare<S>(service: S) -> Result<()>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: NamedService + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind(ANY_PORT).await?;
    let shutdown = listening(listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(service);
    Ok(server.serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned()).await?)
}

#[derive(clap::Args)]
pub(crate) struct Echo {
    /// The answer, encoded, in hexadecimal
    #[arg(long, value_parser = decoded::<CheckQuotaResponse>)]
    answer: Arc<CheckQuotaResponse>,
}

impl Echo {
    pub(super) async fn run(self) -> Result<()> {
        serve_bare(echo::Echo { answer: self.answer }).await
    }
}

/// The layers that every server of ours has.
#[derive(clap::Args)]
struct Layers {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    serve: ServeArgs,
}

impl Layers {
    async fn serve(self, routes: Routes) -> Result<()> {
        let telemetry = telemetry::init(&self.telemetry, "nexus-bench-echo")?;
        let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
        let shutdown = listening(listeners.main_addr()?);
        let server = GrpcServer {
            routes,
            services: &["nexus.usage.v1.UsageService"],
            foreign_services: &[],
            auth: Arc::new(Authenticator::new(&self.auth)?),
            api_keys: None,
            metrics: Metrics::new(),
            turns: Turns::of(16),
            args: self.serve,
            connection_age: CONNECTION_AGE,
            connections: connection_places(),
            readiness: Arc::new(|| Box::pin(async { Ok(nexus_kit::serve::Ready::Fully) })),
        };
        let served = server.serve(listeners, shutdown).await;
        telemetry.shutdown();
        Ok(served?)
    }
}

#[derive(clap::Args)]
pub(crate) struct LayeredEcho {
    #[command(flatten)]
    echo: Echo,
    #[command(flatten)]
    layers: Layers,
}

impl LayeredEcho {
    pub(super) async fn run(self) -> Result<()> {
        self.layers.serve(Routes::new(echo::Echo { answer: self.echo.answer })).await
    }
}

#[derive(clap::Args)]
pub(crate) struct LayeredRateLimitEcho {
    #[command(flatten)]
    echo: rate_limit::EchoArgs,
    #[command(flatten)]
    layers: Layers,
}

impl LayeredRateLimitEcho {
    pub(super) async fn run(self) -> Result<()> {
        self.layers.serve(Routes::new(self.echo.service())).await
    }
}

/// A message in hexadecimal.
pub(super) fn decoded<M: Message + Default>(text: &str) -> Result<Arc<M>> {
    Ok(Arc::new(M::decode(hex::decode(text)?.as_slice())?))
}
