use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Result;
use nexus_kit::auth::Scope;

use super::{server_environment, token};
use crate::{
    database::Database,
    measure::{Latencies, Report, print_table},
    process::{self, Environment, ServerProcess, TOKEN_VARIABLE},
    workload::Shape,
};

/// RecordUsage, unary, acknowledged after its commit: many in flight against a bare echo of the same messages,
/// and one alone against an echo and an fdatasync.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections of the load generator
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    connections: u32,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    in_flight: u32,
    /// Accounts and the spread of calls over them
    #[arg(long, default_value = "10000:zipf", value_name = "ACCOUNTS:SPREAD")]
    shape: Shape,
    /// Measured seconds of a round; a second of warming up goes before
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600), value_name = "S")]
    seconds: u32,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut database = Database::start(args.shape.accounts).await?;
    let with_database = [server_environment(), vec![("DATABASE_URL", database.url())]].concat();
    let usage = ServerProcess::start(&["usage"], &with_database).await?;
    let echo = ServerProcess::start(&["echo", "--answer", ""], &server_environment()).await?;
    let generator: Environment = vec![(TOKEN_VARIABLE, token(&[Scope::UsageWrite])?)];
    for (connections, in_flight) in [(args.connections, args.in_flight), (1, 1)] {
        database.clear_usage().await?;
        let ours = load(&args, (connections, in_flight), &usage.url, &generator).await?;
        let bare = load(&args, (connections, in_flight), &echo.url, &generator).await?;
        let title = format!(
            "RecordUsage {}: {connections} connection(s) x {in_flight} in flight, PostgreSQL {}, {} s",
            args.shape,
            database.version(),
            args.seconds
        );
        print_table(
            &title,
            "requests",
            ("usage-svc", ours),
            &[("echo, bare", bare), ("fdatasync", syncs()?)],
        );
    }
    println!("usage-svc: {} MB resident at most", usage.peak_resident_bytes()? / 1_000_000);
    for server in [usage, echo] {
        server.stop().await?;
    }
    database.stop().await
}

async fn load(
    args: &Args,
    (connections, in_flight): (u32, u32),
    url: &str,
    environment: &Environment,
) -> Result<Report> {
    let numbers = [connections, in_flight, args.seconds].map(|n| n.to_string());
    let [connections, in_flight, seconds] = &numbers;
    let shape = args.shape.to_string();
    let arguments = [
        "record-load",
        "--url",
        url,
        "--connections",
        connections,
        "--in-flight",
        in_flight,
        "--shape",
        &shape,
        "--seconds",
        seconds,
    ];
    process::load(&arguments, environment).await
}

/// What the disk takes to keep a page: 8 KiB written at a file's end and synced, one after the other, for a second.
fn syncs() -> Result<Report> {
    let mut file = tempfile::tempfile()?;
    let (mut done, mut latencies, started) = (0, Latencies::new()?, Instant::now());
    while started.elapsed() < Duration::from_secs(1) {
        let write = Instant::now();
        file.write_all(&[1; 8192])?;
        file.sync_data()?;
        latencies.record(write.elapsed())?;
        done += 1;
    }
    Ok(Report::new(done, started.elapsed(), &latencies))
}
