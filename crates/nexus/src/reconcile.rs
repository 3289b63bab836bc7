//! `nexus reconcile`: has billing-svc compare its records with each other and with Stripe, and says what differs.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_client as client;
use nexus_proto::billing::v1::{Difference, ReconcileRequest, ReconcileResponse};
use serde_json::{Value, json};

use crate::{
    call::Billing,
    text::{money, thousands},
};

pub(crate) const HELP: &str = "\
Examples:
  nexus reconcile
  nexus reconcile --account eco_demo_pro --json
  nexus reconcile --repair
It ends when everything was compared, however long that takes; each call takes --call-timeout at most.
Exit code: 0 no differences are left, 2 there are some, 1 it failed. Nothing is changed without --repair.";

/// Between two calls about a reconciliation that goes on.
const PAUSE: Duration = Duration::from_secs(1);
/// Before a call is repeated that failed; twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Calls in a row that may fail, the first included.
const MAX_FAILURES: u32 = 5;

#[derive(Args)]
pub(crate) struct ReconcileArgs {
    /// Repair what can be repaired: summaries are computed anew, items that only Stripe has, or has over another
    /// amount, go into the ledger, charges whose items are gone are given up, to be made anew by the next run,
    /// second items of a charge that wait for an invoice are deleted
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only these accounts
    #[arg(long = "account", value_name = "ID", num_args = 1..)]
    accounts: Vec<String>,
    #[command(flatten)]
    server: Billing,
}

pub(crate) async fn run(args: ReconcileArgs) -> Result<ExitCode> {
    let response = to_the_end(&args).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&response))?);
    } else {
        print!("{}", as_text(&response));
    }
    let left = response.differences_count - i64::from(response.repaired_count);
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Calls with one and the same `request_id` until everything was compared; where another reconciliation is at
/// work, until that has ended and this one could begin.
async fn to_the_end(args: &ReconcileArgs) -> Result<ReconcileResponse> {
    let mut billing = args.server.client()?;
    let request = ReconcileRequest {
        request_id: uuid::Uuid::now_v7().to_string(),
        account_ids: args.accounts.clone(),
        period_time: None,
        repair: args.repair,
    };
    let mut failures = 0;
    loop {
        let answer = billing.reconcile(args.server.request(request.clone())?).await;
        let pause = match answer.map(tonic::Response::into_inner) {
            Ok(response) if !response.running && !response.already_running => return Ok(response),
            Ok(response) => {
                failures = 0;
                eprint!("{}", progress(&response));
                PAUSE
            }
            Err(status) => {
                failures += 1;
                let failed = args.server.refused("Reconcile", &status);
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

fn progress(r: &ReconcileResponse) -> String {
    if r.already_running {
        return "Another reconciliation is at work; this one waits for its end.\n".to_owned();
    }
    format!(
        "Reconciliation {} goes on: {} periods and {} items so far, {} differences.\n",
        r.reconciliation_id,
        count(r.periods_count),
        count(r.items_count),
        count(r.differences_count)
    )
}

fn count(n: i64) -> String {
    thousands(n.unsigned_abs())
}

fn as_json(r: &ReconcileResponse) -> Value {
    json!({
        "reconciliation_id": r.reconciliation_id,
        "accounts": r.accounts_count,
        "periods": r.periods_count,
        "items": r.items_count,
        "difference_count": r.differences_count,
        "repaired_count": r.repaired_count,
        "differences": r.differences.iter().map(difference_json).collect::<Vec<_>>(),
        "duration_ms": r.duration_ms,
    })
}

fn difference_json(d: &Difference) -> Value {
    json!({
        "eco_id": d.eco_id,
        "kind": d.kind,
        "message": d.message,
        "amount_micros": d.amount_micros,
        "currency_code": d.currency_code,
        "period_start": d.period_start_time.as_ref().map(ToString::to_string),
        "charge_id": d.charge_id,
        "stripe_invoice_item_id": d.stripe_invoice_item_id,
        "repaired": d.repaired,
    })
}

fn as_text(r: &ReconcileResponse) -> String {
    let mut text = format!(
        "Reconciliation {}: {} periods of {} accounts and {} items at Stripe in {:.1} s, {} differences, {} repaired.\n",
        r.reconciliation_id,
        count(r.periods_count),
        count(r.accounts_count.into()),
        count(r.items_count),
        r.duration_ms as f64 / 1000.0,
        count(r.differences_count),
        count(r.repaired_count.into())
    );
    for d in &r.differences {
        let amount = match d.amount_micros {
            0 => String::new(),
            micros => format!(" ({})", money(micros, &d.currency_code)),
        };
        let repaired = if d.repaired { " Repaired." } else { "" };
        text.push_str(&format!("  {}: {}{amount}: {}{repaired}\n", d.eco_id, d.kind, d.message));
    }
    let untold = r.differences_count - r.differences.len() as i64;
    if untold > 0 {
        text.push_str(&format!("  and {} more\n", count(untold)));
    }
    text
}
