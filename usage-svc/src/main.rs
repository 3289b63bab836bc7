use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{
    config::{self, TelemetryArgs},
    serve,
};

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
    let cli = config::parse::<Cli>();
    serve::run("nexus-usage", &cli.telemetry, |shutdown| nexus_usage::start(cli.config, shutdown)).await
}
