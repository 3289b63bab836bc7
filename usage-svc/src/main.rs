use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{config::TelemetryArgs, serve};

#[derive(Parser)]
#[command(name = "usage-svc", version, about)]
struct Cli {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_usage::Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    serve::run("nexus-usage", &cli.telemetry, |shutdown| nexus_usage::start(cli.config, shutdown)).await
}
