//! `nexus overage runs` and `nexus overage errors`.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_proto::billing::v1::{ListOverageRunErrorsRequest, ListOverageRunsRequest};

use super::show;
use crate::call::Billing;

/// Accounts that are asked for at a time.
const PAGE: i32 = 1_000;

#[derive(Args)]
pub(crate) struct RunsArgs {
    /// Runs to list at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=100), value_name = "N")]
    limit: i32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Billing,
}

pub(super) async fn runs(args: &RunsArgs) -> Result<ExitCode> {
    let request = ListOverageRunsRequest { page_size: args.limit, ..Default::default() };
    let request = args.server.request(request)?;
    let answer = args.server.client()?.list_overage_runs(request).await;
    let runs =
        answer.map_err(|status| anyhow!(args.server.refused("ListOverageRuns", &status)))?.into_inner().runs;
    if args.json {
        let runs: Vec<_> = runs.iter().map(show::run_json).collect();
        println!("{}", serde_json::to_string_pretty(&runs)?);
    } else {
        print!("{}", show::runs_text(&runs));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
pub(crate) struct ErrorsArgs {
    /// The run (`nexus overage runs` lists them)
    #[arg(value_name = "RUN_ID")]
    run_id: String,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Billing,
}

/// Page by page: there may be as many as there are accounts.
pub(super) async fn errors(args: &ErrorsArgs) -> Result<ExitCode> {
    let mut billing = args.server.client()?;
    let mut request =
        ListOverageRunErrorsRequest { run_id: args.run_id.clone(), page_size: PAGE, ..Default::default() };
    loop {
        let call = args.server.request(request.clone())?;
        let page = billing.list_overage_run_errors(call).await;
        let page = page
            .map_err(|status| anyhow!(args.server.refused("ListOverageRunErrors", &status)))?
            .into_inner();
        for error in &page.errors {
            if args.json {
                println!("{}", show::error_json(error));
            } else {
                print!("{}", show::error_text(error));
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        request.page_token = page.next_page_token;
    }
}
