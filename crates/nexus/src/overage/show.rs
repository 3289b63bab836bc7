//! What is printed of runs: for people, and as JSON.

use nexus_core::money::MICROS;
use nexus_kit::convert;
use nexus_proto::billing::v1::{
    OverageError, OverageRun, OverageRunStatus, PlannedCharge, ProcessOverageResponse,
    WatchOverageRunResponse,
};
use prost_types::Timestamp;
use serde_json::{Value, json};

use crate::call::{money, thousands};

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
        "limited": run.limited,
        "start_time": time(run.start_time.as_ref()),
        "heartbeat_time": time(run.heartbeat_time.as_ref()),
        "end_time": time(run.end_time.as_ref()),
        "duration_ms": run.duration_ms,
    })
}

fn time(at: Option<&Timestamp>) -> Option<String> {
    let at = convert::datetime(at?).ok()?;
    Some(at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
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
    let total = money(r.total_micros, &r.currency_code);
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
    let mut text = format!(
        "{:<40} {:>12} {:>12} {:>12} {:>16} {:>12} {:>12} {:>12}\n",
        "account", "calls", "included", "overage", "price", "due", "charged", "to charge"
    );
    r.planned_charges.iter().for_each(|p| text.push_str(&planned_row(p)));
    let all = r.planned_charges_count;
    if usize::try_from(all).is_ok_and(|all| all > r.planned_charges.len()) {
        let shown = thousands(r.planned_charges.len() as u64);
        text.push_str(&format!("The first {shown} of {} charges are shown.\n", thousands(all)));
    }
    text
}

fn planned_row(p: &PlannedCharge) -> String {
    let included = if p.included_count < 0 { "unlimited".to_owned() } else { thousands(p.included_count) };
    let amount = |micros| money(micros, &p.currency_code);
    format!(
        "{:<40} {:>12} {included:>12} {:>12} {:>16} {:>12} {:>12} {:>12}\n",
        p.eco_id,
        thousands(p.api_calls_count),
        thousands(p.overage_count),
        price(p.price_micros, p.price_per_count),
        amount(p.due_micros),
        amount(p.billed_micros),
        amount(p.charge_micros)
    )
}

/// A price in units of its currency, exactly: `0.001`, `1.5 per 1,000`.
fn price(micros: i64, per: i64) -> String {
    let (whole, part) = (micros / MICROS, micros % MICROS);
    let part = format!("{part:06}");
    let part = part.trim_end_matches('0');
    let amount = if part.is_empty() { thousands(whole) } else { format!("{}.{part}", thousands(whole)) };
    if per == 1 { amount } else { format!("{amount} per {}", thousands(per)) }
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
    let total = money(run.total_micros, &run.currency_code);
    format!(
        "Run {} {}: {processed} of {all} accounts done in {}, {charged} charged, {failed} failed, {total} in all.\n",
        run.run_id,
        status_word(run.status()),
        seconds(run.duration_ms)
    )
}

/// Runs, as a table.
pub(super) fn runs_text(runs: &[OverageRun]) -> String {
    let row = |cells: [&str; 8]| {
        let [run, begun, status, accounts, charged, failed, total, took] = cells;
        format!(
            "{run:<36} {begun:<20} {status:<8} {accounts:>10} {charged:>10} {failed:>8} {total:>14} {took:>10}\n"
        )
    };
    let mut text = row(["run", "begun", "status", "accounts", "charged", "failed", "total", "took"]);
    for run in runs {
        text.push_str(&row([
            &run.run_id,
            &time(run.start_time.as_ref()).unwrap_or_default(),
            status_word(run.status()),
            &thousands(run.accounts_count),
            &thousands(run.charged_count),
            &thousands(run.failed_count),
            &money(run.total_micros, &run.currency_code),
            &seconds(run.duration_ms),
        ]));
    }
    text
}

fn seconds(ms: i64) -> String {
    format!("{}.{} s", thousands(ms / 1_000), ms % 1_000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_told_to_the_last_micro() {
        assert_eq!(price(1_000, 1), "0.001");
        assert_eq!(price(1_500_000, 1_000), "1.5 per 1,000");
        assert_eq!(price(2_000_000, 1), "2");
        assert_eq!(price(1, 1), "0.000001");
    }

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
