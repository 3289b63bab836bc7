use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{config::TelemetryArgs, serve};

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
    let cli = Cli::parse();
    serve::run("nexus-gateway", &cli.telemetry, |shutdown| nexus_gateway::start(cli.config, shutdown)).await
}
