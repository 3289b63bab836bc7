use anyhow::{Context, Result};
use nexus_core::text::thousands;
use nexus_kit::auth::Scope;

use super::{check_quota::answer, checks::LoadArgs, server_environment, token};
use crate::{
    child::Rpc,
    database::{Database, HISTORY_DAYS},
    measure::{Report, print_table},
    process::{Environment, ServerProcess, TOKEN_VARIABLE},
};

/// GetCurrentUsage, unary, of accounts with a history: the raw log, and the counters that it adds up to. Beside it an
/// echo of a check on bare tonic.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    load: LoadArgs,
    /// Events in the raw log, over 90 days
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(0..=100_000_000), value_name = "N")]
    events: u32,
}

pub(crate) async fn run(Args { load, events }: Args) -> Result<()> {
    let mut database = Database::start(load.accounts).await?;
    eprintln!("writing {} events", thousands(events));
    database.fill_history(load.accounts, events).await?;
    let token = token(&[Scope::UsageCheck])?;
    let settings = vec![
        ("DATABASE_URL", database.url()),
        // Nothing of the history is dropped meanwhile.
        ("RAW_RETENTION_DAYS", (HISTORY_DAYS + 1).to_string()),
    ];
    let with_database = [server_environment(), settings].concat();
    let usage = ServerProcess::start(&["usage"], &with_database).await?;
    let answer = answer(&usage.url, &token).await?;
    let echo = ServerProcess::start(&["echo", "--answer", &answer], &server_environment()).await?;

    let generator: Environment = vec![(TOKEN_VARIABLE, token)];
    let scans = database.raw_log_scans().await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 1..=load.rounds {
        eprintln!("round {round} of {}", load.rounds);
        ours.push(load.load(Rpc::GetCurrentUsage, &usage.url, &generator).await?);
        bare.push(load.load(Rpc::CheckQuota, &echo.url, &generator).await?);
    }
    for server in [usage, echo] {
        server.stop().await?;
    }
    // What its connections did is told at the latest when they end.
    let scanned = database.raw_log_scans().await?.checked_sub(scans).context("statistics do not shrink")?;
    let title = format!(
        "{}, {} events in {HISTORY_DAYS} days",
        load.title("GetCurrentUsage", database.version()),
        thousands(events)
    );
    database.stop().await?;
    let (ours, bare) = (Report::median(ours), Report::median(bare));
    print_table(&title, "requests", ("usage-svc", ours), &[("echo of a check, bare", bare)]);
    println!("scans of the raw log meanwhile: {scanned}");
    Ok(())
}
