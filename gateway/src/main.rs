use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{
    config::{self, TelemetryArgs},
    serve,
};

#[derive(Parser)]
#[command(name = "gateway", version, about)]
struct Cli {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_gateway::Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = config::parse::<Cli>();
    serve::run("nexus-gateway", &cli.telemetry, |shutdown| nexus_gateway::start(cli.config, shutdown)).await
}
