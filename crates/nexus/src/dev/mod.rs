//! `nexus dev`: everything in one process.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | flags |
//! | [`folder`] | the data folder: one run at a time; secrets made once |
//! | [`ports`] | takes every port before anything is started |
//! | [`database`] | a private PostgreSQL, or the one that DATABASE_URL names; migrations; where demo data may go |
//! | [`stripe`] | the stand-in Stripe, or the account that STRIPE_SECRET_KEY opens |
//! | [`demo`] | 150 accounts with 90 days of usage |
//! | [`servers`] | the four servers, watched and stopped in order |
//! | [`ready_file`], [`banner`] | what to call and with which credentials |

mod args;
mod banner;
mod database;
mod demo;
mod folder;
mod health;
mod ports;
mod ready_file;
mod servers;
mod stripe;

use std::{future::Future, process::ExitCode};

use anyhow::{Context, Result};
use chrono::Utc;
use nexus_kit::{config::TelemetryArgs, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) use args::{DevArgs, HELP};
use database::Database;
use folder::Folder;
use ports::Ports;
use ready_file::{Ready, ReadyFile};
use servers::Servers;
use stripe::Stripe;

/// Runs until it is told to stop.
pub(crate) async fn run(args: DevArgs, telemetry_args: &TelemetryArgs) -> Result<ExitCode> {
    let telemetry = telemetry::init(telemetry_args, "nexus-dev")?;
    let mut signals = Signals::new()?;
    let result = run_until_stopped(args, &mut signals).await;
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await?;
    result
}

async fn run_until_stopped(args: DevArgs, signals: &mut Signals) -> Result<ExitCode> {
    args.check()?;
    // A folder that is there is taken first: who starts this twice is told so, and not that a port is taken. One that is
    // to be made comes last, so that a run that cannot begin leaves none.
    let folder = Folder::existing(&args)?;
    let ports = Ports::bind(&args.ports, args.ephemeral).await?;
    let ready_file = args.ready_file.as_deref().map(ReadyFile::claim).transpose()?;
    let folder = folder.map_or_else(|| Folder::open(&args), Ok)?;

    // A signal before everything runs drops what was begun; a half-started PostgreSQL ends with its future.
    let Some(database) = signals.or(Database::start(&args, &folder)).await? else { return Ok(stopped()) };
    let result = serve(&args, &folder, ports, &database, ready_file.as_ref(), signals).await;
    drop(ready_file);
    let database_stopped = database.stop().await;
    let code = result?;
    database_stopped?;
    Ok(code)
}

/// Starts the servers and serves until a signal comes or one of them fails; then stops them.
async fn serve(
    args: &DevArgs,
    folder: &Folder,
    ports: Ports,
    database: &Database,
    ready_file: Option<&ReadyFile>,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let addresses = ports.addresses()?;
    let mut servers = Servers::default();
    let stripe = Stripe::start(args, folder, &mut servers, ports.stripe, &addresses)?;
    let start = async {
        let demo = demo::ensure(args, database, &stripe, folder.secrets()).await?;
        let ready = Ready::new(args, folder.secrets(), &addresses, database, &stripe, demo, Utc::now())?;
        tracing::debug!("the database is ready");
        servers.start(args, folder.secrets(), &addresses, database, &stripe, ports.servers)?;
        servers.or_failure(health::all_serving(&addresses, ready.service_token())).await?;
        tracing::debug!("all servers serve");
        servers.or_failure(database.summaries_are_current()).await?;
        if let Some(file) = ready_file {
            file.write(&ready)?;
        }
        print!("{}", banner::text(&ready, &addresses, database, folder));
        Ok::<_, anyhow::Error>(())
    };
    let outcome = match signals.or(start).await {
        Ok(Some(())) => {
            tokio::select! {
                () = signals.next() => Ok(()),
                failure = servers.failure() => Err(failure),
            }
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if outcome.is_ok() {
        println!("\nStopping …");
    }
    // A second signal cuts off calls in flight. PostgreSQL is stopped in any case.
    let drained = tokio::select! {
        drained = servers.drain() => drained,
        () = signals.next() => { servers.abort().await; Ok(()) }
    };
    outcome?;
    drained?;
    Ok(stopped())
}

fn stopped() -> ExitCode {
    ExitCode::SUCCESS
}

/// The signals that mean: stop.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening to signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }

    /// The output of `work`, or `None` if a signal came first.
    async fn or<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        tokio::select! {
            output = work => output.map(Some),
            () = self.next() => Ok(None),
        }
    }
}
