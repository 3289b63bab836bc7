use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{
    config::{self, TelemetryArgs},
    serve,
};

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
    let cli = config::parse::<Cli>();
    serve::run("nexus-analytics", &cli.telemetry, |shutdown| nexus_analytics::start(cli.config, shutdown))
        .await
}
