use std::net::SocketAddr;

use clap::Args;
use nexus_kit::config::{AuthArgs, DbArgs, ServeArgs};

/// Settings of usage-svc.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// Address of the gRPC server; port 0: a free one
    #[arg(long = "grpc-addr", env = "USAGE_GRPC_ADDR", default_value = "0.0.0.0:50051", value_name = "ADDR")]
    pub grpc_addr: SocketAddr,
    /// Address of /metrics, /healthz and /readyz; port 0: a free one
    #[arg(
        long = "metrics-addr",
        env = "USAGE_METRICS_ADDR",
        default_value = "0.0.0.0:9151",
        value_name = "ADDR"
    )]
    pub metrics_addr: SocketAddr,
    #[command(flatten)]
    pub auth: AuthArgs,
    #[command(flatten)]
    pub serve: ServeArgs,
    #[command(flatten)]
    pub db: DbArgs,
}
