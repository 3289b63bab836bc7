//! `nexus overage process`: has billing-svc charge what is owed, and follows the run to its end.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use nexus_client as client;
use nexus_proto::billing::v1::{PlannedCharge, ProcessOverageRequest, ProcessOverageResponse};
use serde_json::{Value, json};

use crate::call::{self, Credentials, money, thousands};

const HELP: &str = "\
Examples:
  nexus overage process --dry-run
  nexus overage process --account eco_demo_pro --json
It ends when the run has ended, however long that takes; each call takes --call-timeout at most.
Exit code: 0 all well (also when another run was at work: then nothing was done), 2 some accounts could
not be charged, 1 the run failed. Safe to repeat: what was charged is not charged again.";

/// Between two calls about a run that goes on.
const PAUSE: Duration = Duration::from_secs(1);
/// Before a call is repeated that failed; twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Calls in a row that may fail, the first included.
const MAX_FAILURES: u32 = 5;

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Charge every account the overage it owes and was not charged for yet
    #[command(after_help = HELP)]
    Process(ProcessArgs),
}

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
    /// billing-svc
    #[arg(long, env = "BILLING_ADDR", default_value = "localhost:50052", value_parser = call::address, value_name = "ADDR")]
    billing_addr: String,
    #[command(flatten)]
    credentials: Credentials,
}

pub(crate) async fn run(action: Action) -> Result<ExitCode> {
    let Action::Process(args) = action;
    let response = to_the_end(&args).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&response, args.dry_run))?);
    } else {
        print!("{}", as_text(&response, args.dry_run));
    }
    Ok(if response.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Calls with one and the same `request_id` until the run has ended. A run that was cut short goes on with
/// the next call, and a call that was lost has begun nothing twice.
async fn to_the_end(args: &ProcessArgs) -> Result<ProcessOverageResponse> {
    let mut billing = client::billing(args.credentials.channel(&args.billing_addr)?);
    let request = ProcessOverageRequest {
        request_id: uuid::Uuid::now_v7().to_string(),
        account_ids: args.accounts.clone(),
        dry_run: args.dry_run,
    };
    let mut failures = 0;
    loop {
        let answer = billing.process_overage(args.credentials.options()?.request(request.clone())).await;
        let pause = match answer.map(tonic::Response::into_inner) {
            Ok(response) if !response.running => return Ok(response),
            Ok(response) => {
                failures = 0;
                eprint!("{}", as_text(&response, false));
                PAUSE
            }
            Err(status) => {
                failures += 1;
                let failed = format!("ProcessOverage at {}: {}", args.billing_addr, call::explain(&status));
                if failures >= MAX_FAILURES || !client::is_transient(&status) {
                    return Err(anyhow!(failed));
                }
                eprintln!("{failed}; it is called again");
                FIRST_BACKOFF * 2_u32.pow(failures - 1)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn as_json(r: &ProcessOverageResponse, dry_run: bool) -> Value {
    let errors: Vec<Value> = r
        .errors
        .iter()
        .map(|e| json!({"eco_id": e.eco_id, "reason": e.reason, "message": e.message}))
        .collect();
    let mut all = json!({
        "run_id": r.run_id,
        "dry_run": dry_run,
        "processed": r.processed_count,
        "charged": r.charged_count,
        "total_micros": r.total_micros,
        "currency_code": r.currency_code,
        "errors": errors,
        "running": r.running,
        "already_running": r.already_running,
        "duration_ms": r.duration_ms,
    });
    if dry_run {
        all["planned_charges"] = r.planned_charges.iter().map(planned_json).collect();
    }
    all
}

fn planned_json(p: &PlannedCharge) -> Value {
    json!({
        "eco_id": p.eco_id,
        "api_calls": p.api_calls_count,
        "included": p.included_count,
        "overage_calls": p.overage_count,
        "price_micros": p.price_micros,
        "price_per": p.price_per_count,
        "due_micros": p.due_micros,
        "billed_micros": p.billed_micros,
        "charge_micros": p.charge_micros,
        "currency_code": p.currency_code,
    })
}

fn as_text(r: &ProcessOverageResponse, dry_run: bool) -> String {
    if r.already_running {
        return "Another run is at work; this one did nothing.\n".to_owned();
    }
    let mut text = String::new();
    if dry_run && !r.planned_charges.is_empty() {
        text.push_str(&format!(
            "{:<40} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
            "account", "calls", "overage", "due", "charged", "to charge"
        ));
        for p in &r.planned_charges {
            text.push_str(&planned_row(p));
        }
    }
    let total = money(r.total_micros, &r.currency_code);
    let seconds = r.duration_ms as f64 / 1000.0;
    text.push_str(&match (dry_run, r.running) {
        (true, _) => format!(
            "Dry run: {} accounts looked at, {} would be charged {total} in all; nothing was touched.\n",
            r.processed_count, r.charged_count
        ),
        (false, true) => format!(
            "Run {} goes on: {} accounts done so far, {} charged, {total} in all.\n",
            r.run_id, r.processed_count, r.charged_count
        ),
        (false, false) => format!(
            "Run {}: {} accounts done in {seconds:.1} s, {} charged, {total} in all.\n",
            r.run_id, r.processed_count, r.charged_count
        ),
    });
    if !r.errors.is_empty() {
        text.push_str(&format!("{} accounts could not be charged:\n", r.errors.len()));
        for e in &r.errors {
            text.push_str(&format!("  {}: {}: {}\n", e.eco_id, e.reason, e.message));
        }
    }
    text
}

fn planned_row(p: &PlannedCharge) -> String {
    let count = |n: i64| thousands(n.unsigned_abs());
    let amount = |micros| money(micros, &p.currency_code);
    format!(
        "{:<40} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
        p.eco_id,
        count(p.api_calls_count),
        count(p.overage_count),
        amount(p.due_micros),
        amount(p.billed_micros),
        amount(p.charge_micros)
    )
}
