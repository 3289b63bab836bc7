use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nexus_client::CallOptions;
use nexus_core::text::thousands;
use nexus_kit::auth::Scope;
use nexus_proto::billing::v1::{OverageRunStatus, ProcessOverageRequest, WatchOverageRunRequest};

use super::{server_environment, token};
use crate::{
    database::Database,
    measure::Report,
    process::{self, Environment, ServerProcess},
};

/// The stand-in takes any test key.
const STRIPE_KEY: &str = "sk_test_bench";
/// What each account owes: 10 cents.
const UNITS: i64 = 100;
const CENTS_MICROS: i64 = 100_000;
const BEGIN_WITHIN: Duration = Duration::from_secs(50);

/// ProcessOverage over so many accounts that owe, a charge each, against the same invoice items made without a
/// ledger. Fails unless each account is charged exactly what it owes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Accounts that owe; more than once: one after the other
    #[arg(long = "accounts", default_values_t = [1_000, 10_000, 100_000], value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    accounts: Vec<u32>,
    /// Requests a second that billing-svc may make (STRIPE_RATE_PER_SECOND)
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    rate: u32,
    /// Accounts that a run works on at once (OVERAGE_CONCURRENCY)
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    concurrency: u32,
    /// How long Stripe takes for an item, beside its work, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    latency: u32,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    println!(
        "ProcessOverage: {} at once, {} requests a second at most, Stripe takes {} ms",
        args.concurrency,
        thousands(args.rate),
        args.latency
    );
    println!(
        "{:>10} {:>12} {:>14} {:>14} {:>14} {:>12}",
        "accounts", "charges/s", "of the rate", "items alone/s", "ours / this", "billing MB"
    );
    for accounts in &args.accounts {
        println!("{}", row(&args, *accounts).await?);
    }
    Ok(())
}

async fn row(args: &Args, accounts: u32) -> Result<String> {
    let mut database = Database::start(0).await?;
    let sim = ServerProcess::start(&["stripe-sim"], &Vec::new()).await?;
    let count = accounts.to_string();
    let make = ["customers", "--url", &sim.url, "--key", STRIPE_KEY, "--count", &count];
    let customers: Vec<String> = process::load(&make, &Vec::new()).await?;
    database.let_owe(&customers, UNITS).await?;
    let stripe: Environment = vec![
        ("STRIPE_SECRET_KEY", STRIPE_KEY.to_owned()),
        ("STRIPE_API_BASE", sim.url.clone()),
        ("STRIPE_RATE_PER_SECOND", args.rate.to_string()),
    ];
    let alone = items_alone(args, accounts.min(20_000), &customers[0], &stripe).await?;
    let environment = [
        server_environment(),
        vec![("DATABASE_URL", database.url()), ("OVERAGE_CONCURRENCY", args.concurrency.to_string())],
        stripe,
    ]
    .concat();
    let billing = ServerProcess::start(&["billing"], &environment).await?;
    // It refreshes the summary by itself.
    database.settle_down().await?;
    slow_down(args, accounts, &sim.url).await?;
    let took = charge(&billing.url, accounts).await?;
    let owed = (i64::from(accounts), i64::from(accounts) * CENTS_MICROS);
    let charged = database.charged().await?;
    ensure!(charged == owed, "accounts and micros owed {owed:?}, charged {charged:?}");
    let rate = f64::from(accounts) / took.as_secs_f64();
    let of_rate = if args.rate < 1_000_000 {
        format!("{:.1} %", 100.0 * rate / f64::from(args.rate))
    } else {
        "-".to_owned()
    };
    let row = format!(
        "{:>10} {rate:>12.1} {of_rate:>14} {:>14.1} {:>14.3} {:>12}",
        thousands(accounts),
        alone.rate(),
        rate / alone.rate(),
        billing.peak_resident_bytes()? / 1_000_000
    );
    for server in [billing, sim] {
        server.stop().await?;
    }
    database.stop().await?;
    Ok(row)
}

/// The same requests from as many callers, without accounts, a ledger or a limit.
async fn items_alone(args: &Args, count: u32, customer: &str, stripe: &Environment) -> Result<Report> {
    let (count, in_flight) = (count.to_string(), args.concurrency.to_string());
    let load = ["item-load", "--customer", customer, "--count", &count, "--in-flight", &in_flight];
    process::load(&load, stripe).await
}

async fn slow_down(args: &Args, accounts: u32, sim: &str) -> Result<()> {
    if args.latency == 0 {
        return Ok(());
    }
    let fault = serde_json::json!({
        "method": "POST", "path": "/v1/invoiceitems", "times": accounts, "delay_ms": args.latency
    });
    let answer = reqwest::Client::new().post(format!("{sim}/_sim/faults")).body(fault.to_string());
    answer.header("content-type", "application/json").send().await?.error_for_status()?;
    Ok(())
}

/// From the call to the end of the run.
async fn charge(url: &str, accounts: u32) -> Result<Duration> {
    let options = CallOptions::bearer(&token(&[Scope::BillingRun])?, BEGIN_WITHIN)?;
    let mut billing = nexus_client::billing(nexus_client::channel(url)?);
    let started = Instant::now();
    let request = ProcessOverageRequest { return_at_once: true, ..Default::default() };
    let run_id = billing.process_overage(options.request(request)).await?.into_inner().run_id;
    let request = options.endless(WatchOverageRunRequest { run_id });
    let mut looks = billing.watch_overage_run(request).await?.into_inner();
    let mut last = None;
    while let Some(look) = looks.message().await? {
        last = Some(look);
    }
    let took = started.elapsed();
    let last = last.context("a look")?;
    ensure!(
        last.status() == OverageRunStatus::Finished && last.charged_count.unsigned_abs() == accounts,
        "the run ended with {last:?}"
    );
    Ok(took)
}
