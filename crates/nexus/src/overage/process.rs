//! `nexus overage process`.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_client as client;
use nexus_proto::billing::v1::{OverageRunStatus, ProcessOverageRequest, ProcessOverageResponse};
use tonic::Response;

use super::{Failures, exit_code, follow, show};
use crate::call::Billing;

pub(super) const HELP: &str = "\
Examples:
  nexus overage process --dry-run
  nexus overage process --account eco_demo_pro --json
It ends when the run has ended, however long that takes, and shows how far it is meanwhile; each call takes
--call-timeout at most.
Exit code: 0 all well (also when another run was at work: then nothing was done), 2 some accounts could
not be charged, 1 the run failed. Safe to repeat: what was charged is not charged again.";

#[derive(Args)]
pub(crate) struct ProcessArgs {
    /// Say what would be charged and why; touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only these accounts
    #[arg(long = "account", value_name = "ID", num_args = 1..)]
    accounts: Vec<String>,
    #[command(flatten)]
    server: Billing,
}

pub(super) async fn run(args: &ProcessArgs) -> Result<ExitCode> {
    let response = to_the_end(args).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&show::response_json(&response, args.dry_run))?);
    } else {
        print!("{}", show::response_text(&response, args.dry_run));
    }
    Ok(exit_code(response.failed_count))
}

/// Calls with one and the same `request_id` until the run has ended, and follows it meanwhile. A run that was cut
/// short goes on with the next call, and a call that was lost has begun nothing twice.
async fn to_the_end(args: &ProcessArgs) -> Result<ProcessOverageResponse> {
    let mut billing = args.server.client()?;
    let request = ProcessOverageRequest {
        request_id: uuid::Uuid::now_v7().to_string(),
        account_ids: args.accounts.clone(),
        dry_run: args.dry_run,
        return_at_once: true,
    };
    let (mut failures, mut done) = (Failures::default(), 0);
    loop {
        let answer = billing.process_overage(args.server.request(request.clone())?).await;
        let failed = match answer.map(Response::into_inner) {
            Ok(response) if !response.running => return Ok(response),
            Ok(response) => match follow::to_the_end(&args.server, &mut billing, &response.run_id).await? {
                Ok(last) => {
                    if last.processed_count > done {
                        failures.clear();
                        done = last.processed_count;
                    }
                    if last.status() == OverageRunStatus::Finished {
                        // The next call tells all of it.
                        continue;
                    }
                    format!("run {} was cut short (RUN_FAILED)", response.run_id)
                }
                Err(status) => args.server.refused("WatchOverageRun", &status),
            },
            Err(status) => {
                let failed = args.server.refused("ProcessOverage", &status);
                if !client::is_transient(&status) {
                    return Err(anyhow!(failed));
                }
                failed
            }
        };
        failures.wait_after(failed).await?;
    }
}
