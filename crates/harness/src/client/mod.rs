//! A client process: records calls, keeps a journal of them, and does not rest before each has its answer.
//!
//! | module | what it does |
//! |---|---|
//! | [`insistent`] | calls usage-svc itself |
//! | [`tracked`] | leaves delivery to the Tracker of nexus-client, with a disk buffer |
//! | [`requests`] | the RPCs that record |
//! | [`workload`] | the calls |
//! | [`journal`] | what survives the process |

mod insistent;
pub(crate) mod journal;
mod requests;
mod tracked;
pub(crate) mod workload;

use std::path::PathBuf;

use anyhow::Result;
use tokio::sync::watch;

use crate::process;
use journal::{History, Journal};

/// Variable that carries a client's token.
pub(crate) const TOKEN_VARIABLE: &str = "NEXUS_HARNESS_TOKEN";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    number: u32,
    /// Address of a replica; repeated
    #[arg(long = "replica", required = true)]
    replicas: Vec<String>,
    #[arg(long)]
    folder: PathBuf,
    /// Whether replicas have spools: what they take there they may have counted before
    #[arg(long)]
    spools: bool,
    /// Whether the Tracker delivers
    #[arg(long)]
    tracker: bool,
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    token: String,
}

/// Makes new calls until its input ends, then delivers what is left, and ends.
pub(crate) async fn run(args: Args) -> Result<()> {
    process::die_with_parent()?;
    let (journal, history) = Journal::open(&History::path(&args.folder, args.number))?;
    let (process, left, finishing) = (history.processes, history.open(), end_of_input());
    match args.tracker {
        true => tracked::run(&args, process, journal, left, finishing).await,
        false => insistent::run(&args, process, journal, left, finishing).await,
    }
}

/// Becomes true when the process's input ends.
fn end_of_input() -> watch::Receiver<bool> {
    let (finish, finishing) = watch::channel(false);
    std::thread::spawn(move || {
        // End of input and a broken pipe mean the same.
        let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        finish.send_replace(true);
    });
    finishing
}
