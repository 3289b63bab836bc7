use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{config::TelemetryArgs, serve};

#[derive(Parser)]
#[command(name = "analytics-svc", version, about)]
struct Cli {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_analytics::Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    serve::run("nexus-analytics", &cli.telemetry, |shutdown| nexus_analytics::start(cli.config, shutdown))
        .await
}
