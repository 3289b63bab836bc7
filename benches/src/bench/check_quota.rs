use std::time::Duration;

use anyhow::Result;
use nexus_client::CallOptions;
use nexus_core::text::thousands;
use nexus_kit::auth::Scope;
use nexus_proto::usage::v1::CheckQuotaRequest;
use prost::Message;

use super::{server_environment, token};
use crate::{
    database::Database,
    measure::{Report, print_table},
    process::{self, Environment, ServerProcess, TOKEN_VARIABLE},
    workload,
};

/// CheckQuota, unary: requests a second and latency, of usage-svc, of an echo of the same messages behind
/// the same authentication, tracing and log layers, and of that echo bare.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections of the load generator
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    connections: u32,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    in_flight: u32,
    /// Accounts that are asked for, in turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    accounts: u32,
    /// Measured seconds of a round; a second of warming up goes before
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600), value_name = "S")]
    seconds: u32,
    /// Rounds, each of all three; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    rounds: u32,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut database = Database::start(args.accounts).await?;
    let token = token(&[Scope::UsageCheck])?;
    let with_database = [server_environment(), vec![("DATABASE_URL", database.url())]].concat();
    let usage = ServerProcess::start(&["usage"], &with_database).await?;
    let answer = answer(&usage.url, &token).await?;
    let layered = ServerProcess::start(&["layered-echo", "--answer", &answer], &server_environment()).await?;
    let bare = ServerProcess::start(&["echo", "--answer", &answer], &server_environment()).await?;

    let generator: Environment = vec![(TOKEN_VARIABLE, token)];
    let (mut ours, mut same_layers, mut echo) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        database.clear_usage().await?;
        for (server, reports) in [(&usage, &mut ours), (&layered, &mut same_layers), (&bare, &mut echo)] {
            reports.push(load(&args, &server.url, &generator).await?);
        }
    }
    for server in [usage, layered, bare] {
        server.stop().await?;
    }
    let title = format!(
        "CheckQuota: {} connections x {} in flight, {} accounts, PostgreSQL {}, median of {} round(s) of {} s",
        args.connections,
        args.in_flight,
        thousands(args.accounts),
        database.version(),
        args.rounds,
        args.seconds
    );
    database.stop().await?;
    print_table(
        &title,
        "requests",
        ("usage-svc", Report::median(ours)),
        &[("echo behind the same layers", Report::median(same_layers)), ("echo, bare", Report::median(echo))],
    );
    Ok(())
}

async fn load(args: &Args, url: &str, environment: &Environment) -> Result<Report> {
    let numbers = [args.connections, args.in_flight, args.accounts, args.seconds].map(|n| n.to_string());
    let [connections, in_flight, accounts, seconds] = &numbers;
    let arguments = [
        "check-load",
        "--url",
        url,
        "--connections",
        connections,
        "--in-flight",
        in_flight,
        "--accounts",
        accounts,
        "--seconds",
        seconds,
    ];
    process::load(&arguments, environment).await
}

/// A real answer of usage-svc, for the echoes to give.
async fn answer(url: &str, token: &str) -> Result<String> {
    let options = CallOptions::bearer(token, Duration::from_secs(10))?;
    let request = CheckQuotaRequest { eco_id: workload::account(0), ..Default::default() };
    let mut client = nexus_client::usage(nexus_client::channel(url)?);
    let answer = client.check_quota(options.request(request)).await?.into_inner();
    Ok(hex::encode(answer.encode_to_vec()))
}
