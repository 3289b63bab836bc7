use anyhow::{Context, Result};
use nexus_core::text::thousands;
use nexus_kit::auth::Scope;

use super::{server_environment, token};
use crate::{
    database::{Database, HISTORY_DAYS},
    measure::{Report, print_header, print_row},
    process::{self, Environment, ServerProcess, TOKEN_VARIABLE},
};

/// What analytics-svc answers, over accounts with a history: the raw log, and the counters, rollups, summaries and movements
/// that it adds up to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections of the load generator
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    connections: u32,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    in_flight: u32,
    /// Accounts
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000), value_name = "N")]
    accounts: u32,
    /// Events in the raw log, over 90 days
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(0..=100_000_000), value_name = "N")]
    events: u32,
    /// Measured seconds of a round; a second of warming up goes before
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600), value_name = "S")]
    seconds: u32,
    /// Rounds; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    rounds: u32,
    /// Only reads whose name has this in it
    #[arg(long, default_value = "", value_name = "TEXT")]
    only: String,
}

/// Orders of the list, by the contract's names.
const ORDERS: [(&str, &str); 4] = [
    ("usage", "USER_SORT_USAGE"),
    ("overage", "USER_SORT_OVERAGE"),
    ("revenue", "USER_SORT_REVENUE"),
    ("created", "USER_SORT_CREATED"),
];

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut database = Database::start(args.accounts).await?;
    eprintln!("writing {} events", thousands(args.events));
    database.fill_history(args.accounts, args.events).await?;
    eprintln!("adding them up");
    database.fill_summaries().await?;
    let settings = vec![("DATABASE_URL", database.url())];
    let server = ServerProcess::start(&["analytics"], &[server_environment(), settings].concat()).await?;
    let generator: Environment = vec![(TOKEN_VARIABLE, token(&[Scope::Admin])?)];
    let scans = database.raw_log_scans().await?;
    let mut rows = Vec::new();
    for (name, read) in reads(args.accounts).into_iter().filter(|(name, _)| name.contains(&args.only)) {
        let mut reports = Vec::new();
        for round in 1..=args.rounds {
            eprintln!("{name}, round {round} of {}", args.rounds);
            reports.push(args.load(&server.url, &read, &generator).await?);
        }
        rows.push((name, Report::median(reports)));
    }
    server.stop().await?;
    // What its connections did is told at the latest when they end.
    let scanned = database.raw_log_scans().await?.checked_sub(scans).context("statistics do not shrink")?;
    let title = format!(
        "analytics-svc: {} connections x {} in flight, {} accounts, {} events in {HISTORY_DAYS} days, PostgreSQL {}, median of {} round(s) of {} s",
        args.connections,
        args.in_flight,
        thousands(args.accounts),
        thousands(args.events),
        database.version(),
        args.rounds,
        args.seconds
    );
    database.stop().await?;
    print_header(&title, "requests");
    rows.iter().for_each(|(name, report)| print_row(name, report));
    println!("scans of the raw log meanwhile: {scanned}");
    Ok(())
}

/// Each read by a name, and the arguments that the load generator takes for it.
fn reads(accounts: u32) -> Vec<(String, Vec<String>)> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut reads = vec![
        ("GetOverview".to_owned(), words("overview")),
        ("GetTotalUsageHistory, 90 days".to_owned(), words("total-history")),
    ];
    for (order, name) in ORDERS {
        // The first page, one in the middle, which is the farthest from both ends, and the last one.
        for skip in [0, accounts / 2, accounts - 100] {
            let read = words(&format!("users --sort {name} --skip {skip}"));
            reads.push((format!("ListUsers by {order}, after {}", thousands(skip)), read));
        }
    }
    let few = format!("eco_bench_{:03}", accounts / 2_000);
    for (what, query) in [("few", few.as_str()), ("all", "eco_bench")] {
        let read = words(&format!("users --sort USER_SORT_USAGE --skip 0 --query {query}"));
        reads.push((format!("ListUsers, {what} by \"{query}\""), read));
    }
    for (name, read) in [
        ("ListTopUsers, 100", "top-users"),
        ("GetRevenueHistory", "revenue"),
        ("GetUsageHistory, 30 days", "history"),
        ("ListEndpointStats, 30 days", "endpoints"),
        ("ForecastUsage", "forecast"),
    ] {
        reads.push((name.to_owned(), words(read)));
    }
    reads
}

impl Args {
    async fn load(&self, url: &str, read: &[String], environment: &Environment) -> Result<Report> {
        let numbers = [self.connections, self.in_flight, self.accounts, self.seconds].map(|n| n.to_string());
        let [connections, in_flight, accounts, seconds] = &numbers;
        let arguments = [
            "read-load",
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
        let read: Vec<&str> = read.iter().map(String::as_str).collect();
        process::load(&[&arguments[..], &read].concat(), environment).await
    }
}
