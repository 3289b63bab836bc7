//! What is printed of runs: for people, and as JSON.

use nexus_proto::billing::v1::{
    CurrencyTotal, OverageError, OverageRun, OverageRunStatus, PlannedCharge, ProcessOverageResponse,
    WatchOverageRunResponse,
};
use serde_json::{Value, json};

use crate::{
    table::{Column, Table},
    text::{money, price, rfc3339, seconds, thousands, units, utc},
};

const PLANNED: &[Column] = &[
    Column::text("account"),
    Column::number("calls"),
    Column::number("included").spare(3),
    Column::number("overage"),
    Column::number("price").spare(4),
    Column::number("due").spare(1),
    Column::number("charged").spare(2),
    Column::number("to charge"),
];

const RUNS: &[Column] = &[
    Column::text("run"),
    Column::text("begun").spare(1),
    Column::text("status"),
    Column::number("accounts").spare(2),
    Column::number("charged"),
    Column::number("failed"),
    Column::number("total"),
    Column::number("took").spare(3),
];

/// The answer to a call, as JSON.
pub(super) fn response_json(r: &ProcessOverageResponse, dry_run: bool) -> Value {
    let mut all = json!({
        "run_id": r.run_id,
        "dry_run": dry_run,
        "processed": r.processed_count,
        "charged": r.charged_count,
        "failed": r.failed_count,
        "total_micros": r.total_micros,
        "currency_code": r.currency_code,
        "totals": r.totals.iter().map(total_json).collect::<Vec<_>>(),
        "errors": r.errors.iter().map(error_json).collect::<Vec<_>>(),
        "running": r.running,
        "already_running": r.already_running,
        "duration_ms": r.duration_ms,
    });
    if r.already_running {
        all["other_run_id"] = json!(r.other_run_id);
    }
    if dry_run {
        all["planned_charges"] = r.planned_charges.iter().map(planned_json).collect();
        all["planned_charges_count"] = json!(r.planned_charges_count);
    }
    all
}

/// An account that could not be charged, as JSON.
pub(super) fn error_json(e: &OverageError) -> Value {
    json!({"eco_id": e.eco_id, "reason": e.reason, "message": e.message})
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

/// A run, as JSON.
pub(super) fn run_json(run: &OverageRun) -> Value {
    json!({
        "run_id": run.run_id,
        "status": status_word(run.status()),
        "accounts": run.accounts_count,
        "processed": run.processed_count,
        "charged": run.charged_count,
        "failed": run.failed_count,
        "total_micros": run.total_micros,
        "currency_code": run.currency_code,
        "totals": run.totals.iter().map(total_json).collect::<Vec<_>>(),
        "limited": run.limited,
        "start_time": rfc3339(run.start_time.as_ref()),
        "heartbeat_time": rfc3339(run.heartbeat_time.as_ref()),
        "end_time": rfc3339(run.end_time.as_ref()),
        "duration_ms": run.duration_ms,
    })
}

fn status_word(status: OverageRunStatus) -> &'static str {
    match status {
        OverageRunStatus::Unspecified => "unknown",
        OverageRunStatus::Running => "running",
        OverageRunStatus::Finished => "finished",
        OverageRunStatus::Failed => "failed",
        OverageRunStatus::Silent => "silent",
    }
}

/// The answer to a call.
pub(super) fn response_text(r: &ProcessOverageResponse, dry_run: bool) -> String {
    if r.already_running {
        return if r.other_run_id.is_empty() {
            "Another run is at work; this one did nothing.\n".to_owned()
        } else {
            format!(
                "Another run is at work; this one did nothing. To follow it: nexus overage watch {}\n",
                r.other_run_id
            )
        };
    }
    let mut text = String::new();
    if dry_run && !r.planned_charges.is_empty() {
        text.push_str(&planned_table(r));
    }
    let total = sums(&r.totals, r.total_micros, &r.currency_code);
    let [processed, charged] = [r.processed_count, r.charged_count].map(thousands);
    text.push_str(&if dry_run {
        format!("Dry run: {processed} accounts looked at, {charged} would be charged {total} in all; nothing was touched.\n")
    } else {
        format!(
            "Run {}: {processed} accounts done in {}, {charged} charged, {total} in all.\n",
            r.run_id,
            seconds(r.duration_ms)
        )
    });
    if r.failed_count > 0 {
        text.push_str(&format!("{} accounts could not be charged:\n", thousands(r.failed_count)));
        r.errors.iter().for_each(|e| text.push_str(&format!("  {}", error_text(e))));
        if usize::try_from(r.failed_count).is_ok_and(|failed| failed > r.errors.len()) {
            text.push_str("  … and others");
            if !dry_run {
                text.push_str(&format!(": nexus overage errors {}", r.run_id));
            }
            text.push('\n');
        }
    }
    text
}

/// What would be charged, and what it follows from.
fn planned_table(r: &ProcessOverageResponse) -> String {
    let mut text = Table::new(PLANNED).lines(r.planned_charges.iter().map(planned_row));
    let all = r.planned_charges_count;
    if usize::try_from(all).is_ok_and(|all| all > r.planned_charges.len()) {
        let shown = thousands(r.planned_charges.len() as u64);
        text.push_str(&format!("The first {shown} of {} charges are shown.\n", thousands(all)));
    }
    text
}

fn planned_row(p: &PlannedCharge) -> Vec<String> {
    let amount = |micros| money(micros, &p.currency_code);
    vec![
        p.eco_id.clone(),
        thousands(p.api_calls_count),
        units(p.included_count),
        thousands(p.overage_count),
        price(p.price_micros, p.price_per_count),
        amount(p.due_micros),
        amount(p.billed_micros),
        amount(p.charge_micros),
    ]
}

/// An account that could not be charged.
pub(super) fn error_text(e: &OverageError) -> String {
    format!("{}: {}: {}\n", e.eco_id, e.reason, e.message)
}

/// How far a run is, as a line.
pub(super) fn look_text(run_id: &str, look: &WatchOverageRunResponse) -> String {
    let [processed, all] = [look.processed_count, look.accounts_count].map(thousands);
    format!("Run {run_id} goes on: {processed} of {all} accounts done so far, {}.\n", look_message(look))
}

/// How far a run is, beside its bar.
pub(super) fn look_message(look: &WatchOverageRunResponse) -> String {
    let failed = match look.failed_count {
        0 => String::new(),
        failed => format!("{} failed, ", thousands(failed)),
    };
    let total = money(look.total_micros, &look.currency_code);
    format!("{} charged, {failed}{total} in all", thousands(look.charged_count))
}

/// A run that has ended.
pub(super) fn run_text(run: &OverageRun) -> String {
    let [processed, all, charged, failed] =
        [run.processed_count, run.accounts_count, run.charged_count, run.failed_count].map(thousands);
    let total = sums(&run.totals, run.total_micros, &run.currency_code);
    format!(
        "Run {} {}: {processed} of {all} accounts done in {}, {charged} charged, {failed} failed, {total} in all.\n",
        run.run_id,
        status_word(run.status()),
        seconds(run.duration_ms)
    )
}

/// Runs, as a table.
pub(super) fn runs_text(runs: &[OverageRun]) -> String {
    Table::new(RUNS).lines(runs.iter().map(|run| {
        vec![
            run.run_id.clone(),
            utc(run.start_time.as_ref()),
            status_word(run.status()).to_owned(),
            thousands(run.accounts_count),
            thousands(run.charged_count),
            thousands(run.failed_count),
            sums(&run.totals, run.total_micros, &run.currency_code),
            seconds(run.duration_ms),
        ]
    }))
}

fn total_json(total: &CurrencyTotal) -> Value {
    json!({ "currency_code": total.currency_code, "total_micros": total.total_micros })
}

/// Currencies are not added up; of one alone it is that, and of none nothing in the usual one.
fn sums(totals: &[CurrencyTotal], micros: i64, currency_code: &str) -> String {
    if totals.is_empty() {
        return money(micros, currency_code);
    }
    let sums = totals.iter().map(|total| money(total.total_micros, &total.currency_code));
    sums.collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_charges_and_errors_than_are_told_are_counted() {
        let error = OverageError { eco_id: "eco_a".into(), reason: "WHY".into(), message: "Why.".into() };
        let mut answer = ProcessOverageResponse {
            run_id: "r".into(),
            currency_code: "USD".into(),
            failed_count: 2_000,
            planned_charges_count: 100_000,
            planned_charges: vec![PlannedCharge { price_per_count: 1, ..Default::default() }; 1_000],
            errors: vec![error],
            ..Default::default()
        };
        let dry = response_text(&answer, true);
        assert!(dry.contains("The first 1,000 of 100,000 charges are shown."), "{dry}");
        assert!(dry.contains("2,000 accounts could not be charged:\n  eco_a: WHY: Why.\n  … and others\n"));
        answer.planned_charges.clear();
        assert!(response_text(&answer, false).contains("… and others: nexus overage errors r\n"));
        answer.failed_count = 1;
        assert!(!response_text(&answer, false).contains("others"));
    }
}
