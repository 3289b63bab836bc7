//! Requests and answers about overage and charges.

use std::time::Duration;

use nexus_core::{
    id::EcoId,
    money::{self, Micros},
    quota,
};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::timestamp,
    page, status,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use tonic::Status;

use crate::{
    app::{list_charges::Cursor, process_overage as app},
    domain::{
        charge::{Charge, ChargeStatus},
        overage::Facts,
        run::{AccountError, Figures, RunStatus, Totals},
        spend_cap::SpendCap,
    },
    error::Error,
};

/// Accounts that a run or a reconciliation may be limited to.
pub(super) const MAX_ACCOUNTS: usize = 1_000;

/// An account's overage for the wire. What is due is rounded down, unless the period was settled before and goes on.
pub(super) fn overage(facts: Facts, cap: Option<SpendCap>) -> Result<pb::GetOverageResponse, Error> {
    let overage = facts.overage()?;
    let due = facts.due()?;
    let billed = facts.ledger.billed;
    Ok(pb::GetOverageResponse {
        overage_count: overage.units,
        overage_micros: overage.exact.0,
        due_micros: due.0,
        billed_micros: billed.0,
        invoiced: billed.0 > 0 && billed == due,
        currency_code: facts.currency.to_string(),
        included_count: facts.terms.included.unwrap_or(-1),
        period_start_time: Some(timestamp(facts.period.start)),
        period_end_time: Some(timestamp(facts.period.end)),
        eco_id: facts.eco_id,
        spend_cap_micros: cap.map(|cap| cap.cap.0),
        spend_cap_left_micros: cap.map(|cap| cap.left.0),
        spend_cap_limit_count: quota::shown_limit(cap.and_then(|cap| cap.limit)),
    })
}

/// Which charges are asked for.
pub(super) struct ChargePage {
    pub(super) eco_id: EcoId,
    pub(super) size: i64,
    pub(super) after: Option<Cursor>,
}

/// Reads a request to list charges.
pub(super) fn charge_page(caller: &Caller, request: &pb::ListChargesRequest) -> Result<ChargePage, Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[Scope::BillingRun], &mut v)?;
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    // A token belongs to an account, and cannot be read without it.
    let after = eco_id.as_ref().and_then(|eco_id| {
        v.take("page_token", page::decode_timed(eco_id, &request.page_token, |c: &Cursor| c.0)).flatten()
    });
    let (Some(eco_id), Some(size)) = (eco_id, size) else { return Err(status::invalid(&v)) };
    v.finish().map_err(|v| status::invalid(&v))?;
    Ok(ChargePage { eco_id, size, after })
}

/// An entry of the ledger for the wire.
pub(super) fn charge(charge: Charge) -> pb::Charge {
    let status = match charge.status {
        ChargeStatus::Pending => pb::ChargeStatus::Pending,
        ChargeStatus::Succeeded => pb::ChargeStatus::Succeeded,
        ChargeStatus::Failed => pb::ChargeStatus::Failed,
        ChargeStatus::Superseded => pb::ChargeStatus::Superseded,
    };
    pb::Charge {
        charge_id: charge.charge_id.to_string(),
        eco_id: charge.eco_id,
        sequence: charge.sequence,
        attempt: charge.attempt,
        from_count: charge.difference.units_from,
        to_count: charge.difference.units_to,
        amount_micros: charge.difference.amount.0,
        currency_code: charge.currency_code,
        status: status.into(),
        stripe_invoice_item_id: charge.stripe_invoice_item_id.unwrap_or_default(),
        failure_reason: charge.failure_reason.unwrap_or_default(),
        period_start_time: Some(timestamp(charge.period.start)),
        period_end_time: Some(timestamp(charge.period.end)),
        create_time: Some(timestamp(charge.created_time)),
    }
}

/// What is asked of ProcessOverage.
pub(super) struct Asked {
    pub(super) run: app::Request,
    pub(super) dry_run: bool,
}

/// Reads a request to process overage.
pub(super) fn process_request(request: pb::ProcessOverageRequest) -> Result<Asked, Violations> {
    let mut v = Violations::new();
    let request_id = v.optional_uuid("request_id", &request.request_id);
    v.require(request.account_ids.len() <= MAX_ACCOUNTS, "account_ids", "must have at most 1,000 entries");
    for (i, id) in request.account_ids.iter().take(MAX_ACCOUNTS).enumerate() {
        v.eco_id(&format!("account_ids[{i}]"), id);
    }
    v.finish()?;
    let accounts = (!request.account_ids.is_empty()).then_some(request.account_ids);
    let run = app::Request { request_id, accounts, return_at_once: request.return_at_once };
    Ok(Asked { run, dry_run: request.dry_run })
}

/// The answer to a run.
pub(super) fn processed(answer: app::Answer) -> pb::ProcessOverageResponse {
    match answer {
        app::Answer::AlreadyRunning(other) => pb::ProcessOverageResponse {
            already_running: true,
            other_run_id: other.map(|run_id| run_id.to_string()).unwrap_or_default(),
            ..figures(&Figures::default(), Vec::new())
        },
        app::Answer::Run(run, errors) => pb::ProcessOverageResponse {
            run_id: run.run_id.to_string(),
            running: run.status == RunStatus::Running,
            duration_ms: run.duration_ms,
            ..figures(&run.figures, errors)
        },
    }
}

/// The answer to a dry run.
pub(super) fn planned(dry_run: app::DryRun, took: Duration) -> pb::ProcessOverageResponse {
    pb::ProcessOverageResponse {
        duration_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
        planned_charges: dry_run.charges.into_iter().map(planned_charge).collect(),
        planned_charges_count: dry_run.charges_count,
        totals: totals(dry_run.totals),
        ..figures(&dry_run.figures, dry_run.errors)
    }
}

/// Sums by currency, for the wire.
pub(super) fn totals(totals: Totals) -> Vec<pb::CurrencyTotal> {
    let total =
        |(currency_code, total): (String, Micros)| pb::CurrencyTotal { currency_code, total_micros: total.0 };
    totals.into_iter().map(total).collect()
}

fn figures(figures: &Figures, errors: Vec<AccountError>) -> pb::ProcessOverageResponse {
    pb::ProcessOverageResponse {
        processed_count: figures.processed,
        charged_count: figures.charged,
        failed_count: figures.failed,
        total_micros: figures.total.0,
        currency_code: money::Currency::USD.to_string(),
        errors: errors.into_iter().map(error).collect(),
        ..Default::default()
    }
}

/// Why an account could not be charged, for the wire.
pub(super) fn error(error: AccountError) -> pb::OverageError {
    pb::OverageError { eco_id: error.eco_id, reason: error.reason, message: error.message }
}

fn planned_charge(charge: app::PlannedCharge) -> pb::PlannedCharge {
    let (price_micros, price_per_count) = charge.price();
    let facts = charge.facts;
    pb::PlannedCharge {
        period_start_time: Some(timestamp(facts.period.start)),
        api_calls_count: facts.api_calls(),
        included_count: facts.overage_terms().included.unwrap_or(-1),
        overage_count: charge.overage_units,
        price_micros,
        price_per_count,
        due_micros: charge.due.0,
        billed_micros: facts.ledger.billed.0,
        charge_micros: charge.amount.0,
        currency_code: facts.currency.to_string(),
        eco_id: facts.eco_id,
    }
}
