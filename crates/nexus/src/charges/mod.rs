//! `nexus charges`: the ledger of an account, and what each charge follows from, by billing-svc.
//!
//! | module | what it does |
//! |---|---|
//! | [`list`] | `list` |
//! | [`explain`] | `explain` |

mod explain;
mod list;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use nexus_proto::billing::v1::{Charge, ChargeStatus};
use serde_json::{Value, json};

use crate::text::{known, rfc3339};

pub(crate) const HELP: &str = "\
Examples:
  nexus charges list
  nexus charges list --account eco_demo_pro --json
  nexus charges explain 0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00";

#[derive(Subcommand)]
pub(crate) enum Action {
    /// List an account's charges, newest first
    #[command(after_help = list::HELP)]
    List(list::ListArgs),
    /// Tell the counts, plans, prices and arithmetic behind one charge
    #[command(after_help = explain::HELP)]
    Explain(explain::ExplainArgs),
}

pub(crate) async fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::List(args) => list::run(&args).await?,
        Action::Explain(args) => explain::run(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn status_word(charge: &Charge) -> &'static str {
    match charge.status() {
        ChargeStatus::Unspecified => "unknown",
        ChargeStatus::Pending => "pending",
        ChargeStatus::Succeeded => "succeeded",
        ChargeStatus::Failed => "failed",
        ChargeStatus::Superseded => "superseded",
    }
}

fn charge_json(charge: &Charge) -> Value {
    json!({
        "charge_id": charge.charge_id,
        "eco_id": charge.eco_id,
        "sequence": charge.sequence,
        "attempt": charge.attempt,
        "from_overage_calls": charge.from_count,
        "to_overage_calls": charge.to_count,
        "amount_micros": charge.amount_micros,
        "currency_code": charge.currency_code,
        "status": status_word(charge),
        "stripe_invoice_item_id": known(&charge.stripe_invoice_item_id),
        "failure_reason": known(&charge.failure_reason),
        "period_start_time": rfc3339(charge.period_start_time.as_ref()),
        "period_end_time": rfc3339(charge.period_end_time.as_ref()),
        "create_time": rfc3339(charge.create_time.as_ref()),
    })
}
