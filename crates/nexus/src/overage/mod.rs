//! `nexus overage`: has billing-svc charge what is owed and follows the run to its end; shows the runs there were.
//!
//! | module | what it does |
//! |---|---|
//! | [`process`] | `process`: begins a run, goes on with it where it is cut short |
//! | [`follow`] | `watch`, and what `process` does meanwhile: a bar on a terminal, lines otherwise |
//! | [`list`] | `runs`, `errors` |
//! | [`show`] | what is printed: for people, as JSON |

mod follow;
mod list;
mod process;
mod show;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Subcommand;

/// Before a call is repeated that failed; twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Calls in a row that may fail, the first included.
const MAX_FAILURES: u32 = 5;

pub(crate) const HELP: &str = "\
Examples:
  nexus overage process --dry-run          what would be charged now, and why
  nexus overage process
  nexus overage runs                       the runs that were made";

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Charge every account the overage it owes and was not charged for yet
    #[command(after_help = process::HELP)]
    Process(process::ProcessArgs),
    /// Follow a run to its end, whoever began it
    #[command(after_help = follow::HELP)]
    Watch(follow::WatchArgs),
    /// List the runs there were, newest first
    Runs(list::RunsArgs),
    /// List all accounts that a run could not charge, and why
    Errors(list::ErrorsArgs),
}

/// Calls that failed in a row.
#[derive(Default)]
struct Failures(u32);

impl Failures {
    /// Something has gone well.
    fn clear(&mut self) {
        self.0 = 0;
    }

    /// Says what failed and waits before the next call; an error once there have been too many.
    async fn wait_after(&mut self, failed: String) -> Result<()> {
        self.0 += 1;
        anyhow::ensure!(self.0 < MAX_FAILURES, failed);
        eprintln!("{failed}; it is called again");
        tokio::time::sleep(FIRST_BACKOFF * 2_u32.pow(self.0 - 1)).await;
        Ok(())
    }
}

pub(crate) async fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Process(args) => process::run(&args).await,
        Action::Watch(args) => follow::run(&args).await,
        Action::Runs(args) => list::runs(&args).await,
        Action::Errors(args) => list::errors(&args).await,
    }
}

/// 0: all well; 2: some accounts could not be charged.
fn exit_code(failed_count: i32) -> ExitCode {
    if failed_count == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) }
}
