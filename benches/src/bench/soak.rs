use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nexus_core::text::thousands;
use nexus_kit::auth::Scope;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{MissedTickBehavior, interval},
};

use super::{server_environment, token};
use crate::{
    child::Soaked,
    curve::{Sample, slope, thirds},
    database::Database,
    measure::print_row,
    process::{self, Environment, ServerProcess, TOKEN_VARIABLE},
    workload::Shape,
};

/// Rows of the curve that is printed.
const ROWS: usize = 20;
/// What the server's memory, its queue and its calls in flight are looked at for.
const WAITING: &str = "nexus_usage_waiting_events";
const WAITING_LIMIT: &str = "nexus_usage_waiting_events_limit";
const IN_FLIGHT: &str = "nexus_requests_in_flight";

/// usage-svc at full load for a while, by batches, single events and checks at once, and beside it billing-svc, which
/// keeps the summary: memory and queues from beginning to end. Fails unless what was acknowledged is exactly what is counted.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_440), value_name = "N")]
    minutes: u32,
    /// Accounts and the spread of calls over them
    #[arg(long, default_value = "10000:zipf", value_name = "ACCOUNTS:SPREAD")]
    shape: Shape,
    /// Batches of 10,000 events in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=64), value_name = "N")]
    batches: u32,
    /// Single events in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_024), value_name = "N")]
    records: u32,
    /// Checks in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_024), value_name = "N")]
    checks: u32,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60), value_name = "S")]
    every: u32,
}

/// One look.
#[derive(Debug, Clone, Copy)]
struct Look {
    minutes: f64,
    resident_mb: f64,
    waiting: u64,
    in_flight: u64,
    /// Entries that the summary is behind by.
    behind: i64,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut database = Database::start(args.shape.accounts).await?;
    let environment = [server_environment(), vec![("DATABASE_URL", database.url())]].concat();
    let usage = ServerProcess::start(&["usage"], &environment).await?;
    // Without it there is no billing-svc; nothing is asked of Stripe here.
    let stripe = vec![("STRIPE_SECRET_KEY", "sk_test_soak".to_owned())];
    let billing = ServerProcess::start(&["billing"], &[environment, stripe].concat()).await?;
    let limit = metric(&metrics(&usage).await?, WAITING_LIMIT)?;
    let generator: Environment = vec![(TOKEN_VARIABLE, token(&[Scope::UsageWrite, Scope::UsageCheck])?)];

    let mut looks = Vec::new();
    let soaked = tokio::select! {
        soaked = load(&args, &usage, &generator) => soaked?,
        failed = watch(&usage, &mut database, Duration::from_secs(args.every.into()), &mut looks) => {
            return failed.context("watching usage-svc");
        }
    };
    let ended = Instant::now();
    while database.summary_is_behind().await? > 0 {}
    let caught_up = ended.elapsed();
    database.ensure_counted(soaked.all_events).await?;
    println!("\nSoak {}: {} min, PostgreSQL {}", args.shape, args.minutes, database.version());
    print_row("batches, events", &soaked.batches);
    print_row("single events", &soaked.records);
    print_row("checks", &soaked.checks);
    print_curve(&looks, limit)?;
    println!(
        "{} events acknowledged, each counted once everywhere",
        thousands(i64::try_from(soaked.all_events)?)
    );
    let behind = looks.iter().map(|look| look.behind).max().unwrap_or(0);
    println!(
        "the summary was behind by {} entries at most, and caught up {:.1} s after the last event",
        thousands(behind),
        caught_up.as_secs_f64()
    );
    billing.stop().await?;
    usage.stop().await?;
    database.stop().await
}

async fn load(args: &Args, usage: &ServerProcess, environment: &Environment) -> Result<Soaked> {
    let numbers = [args.batches, args.records, args.checks, args.minutes * 60].map(|n| n.to_string());
    let [batches, records, checks, seconds] = &numbers;
    let shape = args.shape.to_string();
    let arguments = [
        "soak-load",
        "--url",
        &usage.url,
        "--shape",
        &shape,
        "--batches",
        batches,
        "--records",
        records,
        "--checks",
        checks,
        "--seconds",
        seconds,
    ];
    process::load(&arguments, environment).await
}

/// Looks again and again, until it is dropped.
async fn watch(
    usage: &ServerProcess,
    database: &mut Database,
    every: Duration,
    looks: &mut Vec<Look>,
) -> Result<()> {
    let started = Instant::now();
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let text = metrics(usage).await?;
        looks.push(Look {
            minutes: started.elapsed().as_secs_f64() / 60.0,
            resident_mb: usage.resident_bytes()? as f64 / 1e6,
            waiting: metric(&text, WAITING)?,
            in_flight: metric(&text, IN_FLIGHT)?,
            behind: database.summary_is_behind().await?,
        });
    }
}

/// What its operations port says.
async fn metrics(server: &ServerProcess) -> Result<String> {
    let address = server.operations_url.strip_prefix("http://").context("it has an operations port")?;
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    connection.read_to_string(&mut text).await?;
    ensure!(text.starts_with("HTTP/1.0 200"), "/metrics answered {text}");
    Ok(text)
}

/// The value of a gauge without labels.
fn metric(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .with_context(|| format!("{name} is missing"))?
        .parse()
        .with_context(|| format!("{name} is no number"))
}

fn print_curve(looks: &[Look], limit: u64) -> Result<()> {
    println!("\n{:>8} {:>14} {:>20} {:>16}", "minute", "resident MB", "events waiting", "calls in flight");
    for part in looks.chunks(looks.len().div_ceil(ROWS).max(1)) {
        let most = |of: fn(&Look) -> u64| part.iter().map(of).max().unwrap_or(0);
        let resident = part.iter().map(|look| look.resident_mb).fold(0.0, f64::max);
        let (waiting, in_flight) = (most(|look| look.waiting), most(|look| look.in_flight));
        println!("{:>8.1} {resident:>14.1} {waiting:>20} {in_flight:>16}", part[0].minutes);
    }
    ensure!(looks.len() >= 6, "too few looks to tell anything");
    let memory: Vec<_> =
        looks.iter().map(|look| Sample { minutes: look.minutes, value: look.resident_mb }).collect();
    let [first, middle, last] = thirds(&memory);
    println!("\nresident MB, mean of the first, middle and last third: {first:.1}, {middle:.1}, {last:.1}");
    println!("growth in the last two thirds: {:.2} MB a minute", slope(&memory[memory.len() / 3..]));
    let waiting = looks.iter().map(|look| look.waiting).max().unwrap_or(0);
    println!("events waiting, at most: {waiting} of {limit}");
    Ok(())
}
