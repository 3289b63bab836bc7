use anyhow::Result;
use nexus_core::text::thousands;
use nexus_kit::auth::Scope;

use super::{server_environment, token};
use crate::{
    child::Loaded,
    database::Database,
    measure::{Report, print_table},
    process::{self, Environment, ServerProcess, TOKEN_VARIABLE},
    workload::Shape,
};

/// Of the classic way: enough to tell its rate.
const CLASSIC_EVENTS: u32 = 50_000;
const CLASSIC_BATCH: u32 = 100;

/// BatchRecordUsage: events a second, each batch acknowledged after its commit with all counters and
/// rollups, against COPY BINARY of the same rows into the same table (today's partition, with its primary
/// key), a transaction a batch, and against the classic way: an insert of 100 rows, then a counter call per account.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// Events of a measurement
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000), value_name = "N")]
    events: u32,
    /// Events of a batch
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    batch: u32,
    /// Accounts and the spread of calls over them, e.g. 10000:zipf; can be given more than once
    #[arg(long = "shape", default_values = ["10000:zipf", "100:uniform", "100000:uniform"], value_name = "ACCOUNTS:SPREAD")]
    shapes: Vec<Shape>,
    /// Routes, called alike
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    routes: u32,
    /// Connections of the load generator, a batch in flight on each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    connections: u32,
    /// Rounds, each of ours and the references; the median is shown
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    rounds: u32,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let accounts = args.shapes.iter().map(|s| s.accounts).max().unwrap_or(1);
    let mut database = Database::start(accounts).await?;
    let environment = [server_environment(), vec![("DATABASE_URL", database.url())]].concat();
    let usage = ServerProcess::start(&["usage"], &environment).await?;
    for shape in &args.shapes {
        measure(&args, *shape, &mut database, &usage).await?;
    }
    usage.stop().await?;
    database.stop().await
}

async fn measure(args: &Args, shape: Shape, database: &mut Database, usage: &ServerProcess) -> Result<()> {
    let generator: Environment =
        vec![(TOKEN_VARIABLE, token(&[Scope::UsageWrite])?), ("DATABASE_URL", database.url())];
    let period_start = database.period_start().await?.to_rfc3339();
    let many = args.connections.to_string();
    let (mut ours, mut one, mut as_many, mut classic) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        eprintln!("{shape}: round {round} of {}", args.rounds);
        for (connections, reports) in [("1", &mut one), (&many, &mut as_many)] {
            database.clear_usage().await?;
            let copy = ["copy-load", "--period-start", &period_start, "--connections", connections];
            reports.push(load(args, shape, &copy, &generator).await?.report);
        }
        database.clear_usage().await?;
        let few = Args { events: args.events.min(CLASSIC_EVENTS), batch: CLASSIC_BATCH, ..args.clone() };
        let inserts = ["classic-load", "--period-start", &period_start, "--connections", &many];
        classic.push(load(&few, shape, &inserts, &generator).await?.report);
        database.clear_usage().await?;
        let batches = ["batch-load", "--url", &usage.url, "--connections", &many];
        let loaded = load(args, shape, &batches, &generator).await?;
        database.ensure_counted(loaded.all_events).await?;
        ours.push(loaded.report);
    }
    let title = format!(
        "Ingest {shape}: {} events in batches of {}, {} routes, PostgreSQL {}, median of {} round(s)",
        thousands(args.events),
        thousands(args.batch),
        args.routes,
        database.version(),
        args.rounds
    );
    let copies = [
        ("COPY BINARY, 1 connection".to_owned(), Report::median(one)),
        (format!("COPY BINARY, {many} connections"), Report::median(as_many)),
        (format!("the classic way, {many} connections"), Report::median(classic)),
    ];
    let copies: Vec<_> = copies.iter().map(|(name, report)| (name.as_str(), *report)).collect();
    let name = format!("usage-svc, {many} connections");
    print_table(&title, "events", (&name, Report::median(ours)), &copies);
    println!("usage-svc: {} MB resident at most, so far", usage.peak_resident_bytes()? / 1_000_000);
    Ok(())
}

async fn load(args: &Args, shape: Shape, which: &[&str], environment: &Environment) -> Result<Loaded> {
    let numbers = [args.events, args.batch, args.routes].map(|n| n.to_string());
    let [events, batch, routes] = &numbers;
    let shape = shape.to_string();
    let workload = ["--events", events, "--batch", batch, "--routes", routes, "--shape", shape.as_str()];
    process::load(&[which, &workload].concat(), environment).await
}
