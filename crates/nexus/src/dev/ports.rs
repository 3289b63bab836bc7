//! Takes every port before anything is started, so that a taken one is told at once.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result, bail};
use nexus_kit::serve::Listeners;
use tokio::net::TcpListener;

use super::args::PortArgs;

/// The listeners of a run.
pub(crate) struct Ports {
    pub(crate) stripe: TcpListener,
    pub(crate) servers: ServerPorts,
}

/// The listeners of the four servers.
pub(crate) struct ServerPorts {
    pub(crate) gateway: Listeners,
    pub(crate) usage: Listeners,
    pub(crate) billing: Listeners,
    pub(crate) analytics: Listeners,
}

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    /// gRPC, or HTTP in the gateway.
    pub(crate) main: SocketAddr,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub(crate) operations: SocketAddr,
}

/// Where the servers listen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) gateway: Address,
    pub(crate) usage: Address,
    pub(crate) billing: Address,
    pub(crate) analytics: Address,
}

impl Ports {
    /// Listens on loopback; without a port given on the usual one, or with `ephemeral` on a free one.
    pub(crate) async fn bind(args: &PortArgs, ephemeral: bool) -> Result<Self> {
        let port = |given: Option<u16>, usual| given.unwrap_or(if ephemeral { 0 } else { usual });
        Ok(Self {
            servers: ServerPorts {
                gateway: Listeners {
                    main: bind("--http-port", port(args.http_port, 8080)).await?,
                    operations: bind("--http-metrics-port", port(args.http_metrics_port, 9150)).await?,
                },
                usage: Listeners {
                    main: bind("--usage-port", port(args.usage_port, 50051)).await?,
                    operations: bind("--usage-metrics-port", port(args.usage_metrics_port, 9151)).await?,
                },
                billing: Listeners {
                    main: bind("--billing-port", port(args.billing_port, 50052)).await?,
                    operations: bind("--billing-metrics-port", port(args.billing_metrics_port, 9152)).await?,
                },
                analytics: Listeners {
                    main: bind("--analytics-port", port(args.analytics_port, 50053)).await?,
                    operations: bind("--analytics-metrics-port", port(args.analytics_metrics_port, 9153))
                        .await?,
                },
            },
            stripe: bind("--stripe-port", port(args.stripe_port, 12111)).await?,
        })
    }

    /// Where the servers listen.
    pub(crate) fn addresses(&self) -> io::Result<Addresses> {
        let of = |l: &Listeners| {
            Ok::<_, io::Error>(Address { main: l.main_addr()?, operations: l.operations_addr()? })
        };
        Ok(Addresses {
            gateway: of(&self.servers.gateway)?,
            usage: of(&self.servers.usage)?,
            billing: of(&self.servers.billing)?,
            analytics: of(&self.servers.analytics)?,
        })
    }
}

async fn bind(flag: &str, port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
            "port {port} is taken by another program: choose another with {flag} PORT (0: a free one), or use --ephemeral"
        ),
        Err(error) => Err(error).with_context(|| format!("listening on port {port} ({flag})")),
    }
}
