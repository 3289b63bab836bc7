use std::process::ExitCode;

use clap::Parser;
use nexus_kit::{
    config::{self, TelemetryArgs},
    serve,
};

#[derive(Parser)]
#[command(name = "billing-svc", version, about)]
struct Cli {
    #[command(flatten)]
    telemetry: TelemetryArgs,
    #[command(flatten)]
    config: nexus_billing::Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = config::parse::<Cli>();
    serve::run("nexus-billing", &cli.telemetry, |shutdown| nexus_billing::start(cli.config, shutdown)).await
}
