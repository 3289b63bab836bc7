//! Shows that the promises hold whatever is killed: an acknowledged event is counted exactly once, a hard limit is
//! exact, what is owed is charged once. Real processes, and faults that come after so much work and not after so much time, so that
//! a seed meets much the same again.
//!
//! The process that a person starts conducts: it runs a private PostgreSQL, and starts itself again as replicas
//! of usage-svc, as billing-svc and as clients.
//!
//! | module | what it does |
//! |---|---|
//! | [`faults`] | the fault harness: which faults a seed has, carrying them out |
//! | [`charges`] | the kill harness of billing |
//! | [`overage`] | many accounts charged in one run, some of them poisoned, billing-svc killed |
//! | [`limit`], [`storm`] | the limit harness: its variants; the checks, all at once |
//! | [`check`] | what must hold after a seed of faults |
//! | [`script`] | faults to come, and the places where they strike |
//! | [`proxy`], [`wire`] | the line between a replica and PostgreSQL, where those places are seen |
//! | [`stage`] | PostgreSQL, and a database and a folder per seed |
//! | [`billing`], [`stripe`] | a billing-svc in a process of its own; the stand-in Stripe |
//! | [`process`], [`front`] | starts, signals and kills replicas and clients; where a replica is reached |
//! | [`child`], [`client`] | what the process does when it is started as one of those |
//! | [`report`] | what is printed |

mod billing;
mod charges;
mod check;
mod child;
mod client;
mod faults;
mod front;
mod limit;
mod overage;
mod process;
mod proxy;
mod report;
mod script;
mod stage;
mod storm;
mod stripe;
mod wire;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use nexus_kit::serve::shutdown_on_signals;

use report::{Outcome, Report};
use stage::{Seed, Stage};

#[derive(Parser)]
#[command(name = "nexus-harness", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    faults: faults::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Records usage while everything is killed and cut off; what was acknowledged must be counted once (what runs when no command is named)
    Faults(faults::Args),
    /// Checks a hard limit, or a spend cap, from four replicas at once; it must be met exactly
    Limit(limit::Args),
    /// Charges many accounts in one run, some of them poisoned, while billing-svc is killed; each is charged once
    Overage(overage::Args),
    /// Charges a few accounts, run after run, while billing-svc is killed wherever it waits and Stripe fails; what is owed is charged once
    Charges(charges::Args),
    /// What the harness starts this program as
    #[command(subcommand, hide = true)]
    Child(child::Child),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Faults(cli.faults)) {
        Command::Child(child) => child.run().await,
        Command::Faults(args) => {
            let run = async |stage: &mut Stage, seed: &Seed| faults::run(stage, seed, &args).await;
            conduct("faults", args.first, args.seeds, run, |seed| args.of_seed(seed)).await
        }
        Command::Limit(args) => {
            let run = async |_: &mut Stage, seed: &Seed| limit::run(seed, &args).await;
            conduct("limit", args.first, args.seeds, run, |seed| args.of_seed(seed)).await
        }
        Command::Overage(args) => {
            let run = async |_: &mut Stage, seed: &Seed| overage::run(seed, &args).await;
            conduct("overage", args.first, args.seeds, run, |seed| args.of_seed(seed)).await
        }
        Command::Charges(args) => {
            let coverage = charges::Coverage::default();
            let run = async |_: &mut Stage, seed: &Seed| charges::run(seed, &coverage).await;
            let exit = conduct("charges", args.first, args.seeds, run, |seed| args.of_seed(seed)).await?;
            println!("{coverage}");
            Ok(exit)
        }
    }
}

/// Runs the seeds, one after the other; fails where one does. `arguments` of a seed run it again.
async fn conduct(
    kind: &str,
    first: u64,
    seeds: u64,
    run: impl AsyncFn(&mut Stage, &Seed) -> Result<Outcome>,
    arguments: impl Fn(u64) -> String,
) -> Result<ExitCode> {
    let all = async {
        let mut stage = Stage::start().await?;
        let mut report = Report::default();
        for number in first..first + seeds {
            let began = Instant::now();
            let seed = stage.seed(kind, number).await?;
            let outcome = run(&mut stage, &seed).await?;
            report.add(number, began.elapsed().as_secs_f64(), &outcome, arguments(number));
            if outcome.failures.is_empty() {
                stage.forget(seed).await?;
            } else {
                seed.dump().await?;
            }
        }
        let holds = report.close();
        if let Some(kept) = stage.stop(!holds).await? {
            println!("logs, journals and tables of failed seeds: {}", kept.display());
        }
        Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    // Interrupted, the work is dropped: its processes end and its PostgreSQL stops.
    let interrupted = shutdown_on_signals()?;
    tokio::select! {
        exit = all => exit,
        () = interrupted.cancelled() => anyhow::bail!("interrupted"),
    }
}
