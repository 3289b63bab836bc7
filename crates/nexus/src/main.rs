//! The one binary.
//!
//! | module | command |
//! |---|---|
//! | [`cli`] | the command line; no command is `dev` |
//! | [`dev`] | `nexus dev`: everything in one process, with a private PostgreSQL and demo data |
//! | [`token`] | `nexus token`: tokens of users and services |
//! | [`usage`] | `nexus usage`: usage-svc, and with a subcommand what accounts have used |
//! | [`accounts`] | `nexus accounts`: lists, creates, and moves accounts between plans |
//! | [`keys`] | `nexus keys`: API keys |
//! | [`charges`] | `nexus charges`: the ledger, and why a charge is what it is |
//! | [`overage`] | `nexus overage`: charges overage, what the CronJob calls; follows and lists runs |
//! | [`reconcile`] | `nexus reconcile`: says what differs between billing's records and Stripe |
//! | [`import`] | `nexus import`: meters a web server's log |
//! | [`maintenance`] | `nexus migrate`, `nexus rollup` |
//! | [`call`] | addresses, credentials and errors of the commands that call a service |
//! | [`listing`], [`table`], [`text`] | what is printed: lists page by page, tables, numbers, money and times |

mod accounts;
mod call;
mod charges;
mod cli;
mod dev;
mod import;
mod keys;
mod listing;
mod maintenance;
mod overage;
mod reconcile;
mod table;
mod text;
mod token;
mod usage;

use std::process::ExitCode;

use cli::{Cli, Command};
use nexus_kit::serve;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    // The one TLS provider of this process; clients that name none ask for it.
    if tokio_rustls::rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing has run before");
    }
    let Cli { telemetry, command } = cli::parse();
    let done = match command {
        Command::Dev(args) => dev::run(*args, &telemetry).await,
        Command::Usage(what) => match *what {
            usage::Usage::Serve(c) => {
                return serve::run("nexus-usage", &telemetry, |stop| nexus_usage::start(*c, stop)).await;
            }
            usage::Usage::Look(what) => usage::look(what).await,
        },
        Command::Billing(c) => {
            return serve::run("nexus-billing", &telemetry, |stop| nexus_billing::start(*c, stop)).await;
        }
        Command::Analytics(c) => {
            return serve::run("nexus-analytics", &telemetry, |stop| nexus_analytics::start(*c, stop)).await;
        }
        Command::Gateway(c) => {
            return serve::run("nexus-gateway", &telemetry, |stop| nexus_gateway::start(*c, stop)).await;
        }
        Command::StripeSim(args) => {
            return serve::run("stripe-sim", &telemetry, |stop| stripe_sim_server(args, stop)).await;
        }
        Command::Migrate(args) => maintenance::migrate(&args).await,
        Command::Rollup(args) => maintenance::rollup(&args).await,
        Command::Token { whose } => token::print(&whose),
        Command::Accounts { action } => accounts::run(action).await,
        Command::Keys { action } => keys::run(action).await,
        Command::Charges { action } => charges::run(action).await,
        Command::Overage { action } => overage::run(action).await,
        Command::Reconcile(args) => reconcile::run(*args).await,
        Command::Import(args) => import::run(*args).await,
        Command::Completions { shell } => cli::completions(shell),
    };
    done.unwrap_or_else(|error| {
        if error.is::<text::ReadEnough>() {
            return ExitCode::SUCCESS;
        }
        eprintln!("nexus: {}", told(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes; one that has told its cause already is told alone.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.ends_with(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

/// Why the stand-in Stripe could not serve.
#[derive(Debug, thiserror::Error)]
enum StripeSimError {
    #[error("cannot listen on {0} (--addr): {1}")]
    Listen(std::net::SocketAddr, std::io::Error),
    #[error(transparent)]
    Serve(#[from] stripe_sim::Error),
}

async fn stripe_sim_server(
    args: cli::StripeSimArgs,
    stop: tokio_util::sync::CancellationToken,
) -> Result<(), StripeSimError> {
    let listen = |error| StripeSimError::Listen(args.addr, error);
    let listener = TcpListener::bind(args.addr).await.map_err(listen)?;
    tracing::info!(address = %listener.local_addr().map_err(listen)?, "stripe-sim listens");
    Ok(stripe_sim::serve(args.config, listener, stop).await?)
}
