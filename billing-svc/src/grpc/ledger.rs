//! Requests and answers about single charges, corrections and the audit log.

use nexus_core::id::EcoId;
use nexus_kit::{
    convert::{datetime, plan_to_proto, timestamp},
    page,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use uuid::Uuid;

use super::overage::charge;
use crate::{
    domain::{
        adjustment::{Adjustment, MAX_REASON, MAX_UNITS},
        basis::{Basis, Kept, Reckoning},
        charge::Charge,
    },
    error::Error,
    store::audit::Entry,
};

/// Reads the id of a charge.
pub(super) fn charge_id(text: &str) -> Result<Uuid, Violations> {
    let mut v = Violations::new();
    v.require(!text.is_empty(), "charge_id", "is required");
    let id = v.optional_uuid("charge_id", text);
    id.filter(|_| v.0.is_empty()).ok_or(v)
}

/// Reads a request to let a charge be attempted again: the charge, and the request's id.
pub(super) fn retry(request: &pb::RetryChargeRequest) -> Result<(Uuid, Option<Uuid>), Violations> {
    let mut v = Violations::new();
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let charge = charge_id(&request.charge_id).map_err(|mut missing| {
        v.0.append(&mut missing.0);
    });
    match charge {
        Ok(charge) if v.0.is_empty() => Ok((charge, request_id)),
        _ => Err(v),
    }
}

/// What a charge follows from, for the wire.
pub(super) fn explanation(entry: Charge, kept: &Kept) -> Result<pb::ExplainChargeResponse, Error> {
    let currency_code = entry.currency_code.clone();
    let text = kept.explanation()?.ok_or(Error::BasisNotKept(entry.charge_id))?;
    let mut answer = pb::ExplainChargeResponse {
        charge: Some(charge(entry)),
        explanation: text,
        currency_code: currency_code.clone(),
        ..Default::default()
    };
    if let Some(Basis::Difference(reckoning)) = &kept.basis {
        answer.segments = segments(reckoning, &currency_code)?;
        answer.due_micros = reckoning.due()?.0;
        answer.billed_before_micros = reckoning.billed_micros;
        answer.settled = reckoning.settling;
    }
    Ok(answer)
}

fn segments(reckoning: &Reckoning, currency_code: &str) -> Result<Vec<pb::ChargeSegment>, Error> {
    let parts = reckoning.exact_by_segment()?;
    let segments =
        reckoning.segments.iter().zip(parts).zip(0..).map(|((segment, part), number)| pb::ChargeSegment {
            segment: number,
            plan: plan_to_proto(segment.plan).into(),
            plan_version: segment.plan_version,
            start_count: segment.start_units,
            end_count: segment.end_units,
            included_count: segment.included_units.unwrap_or(-1),
            overage_count: segment.overage_units,
            price_micros: segment.price_micros,
            price_per_count: segment.price_per_units,
            overage_micros: part.0,
            currency_code: currency_code.to_owned(),
        });
    Ok(segments.collect())
}

/// Reads a correction.
pub(super) fn adjustment(request: pb::AdjustUsageRequest) -> Result<Adjustment, Violations> {
    let mut v = Violations::new();
    let eco_id = v.eco_id("eco_id", &request.eco_id);
    let units = request.delta_count;
    let in_range = units != 0 && units.unsigned_abs() <= MAX_UNITS.unsigned_abs();
    v.require(in_range, "delta_count", format!("must be within {MAX_UNITS} of 0, and not 0"));
    let length = (1..=MAX_REASON).contains(&request.reason.chars().count());
    v.require(length, "reason", format!("must be 1 to {MAX_REASON} characters"));
    let is_plain = !request.reason.chars().any(char::is_control);
    v.require(is_plain, "reason", "must have no control characters");
    v.require(!request.request_id.is_empty(), "request_id", "is required");
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let period_time = request.period_time.as_ref().and_then(|at| v.take("period_time", datetime(at)));
    let segment = request.segment.map(usize::try_from).transpose();
    let segment = v.take("segment", segment.map_err(|_| "must be 0 or more")).flatten();
    let (Some(eco_id), Some(request_id)) = (eco_id, request_id) else { return Err(v) };
    v.finish()?;
    Ok(Adjustment { eco_id, units, reason: request.reason, request_id, period_time, segment })
}

/// Which entries of the audit log are asked for.
pub(super) struct AuditPage {
    pub(super) eco_id: Option<EcoId>,
    pub(super) size: i64,
    pub(super) before: Option<i64>,
}

/// Reads a request to list the audit log.
pub(super) fn audit_page(request: &pb::ListAuditLogRequest) -> Result<AuditPage, Violations> {
    let mut v = Violations::new();
    let eco_id = match request.eco_id.as_str() {
        "" => None,
        text => v.eco_id("eco_id", text),
    };
    let size = v.take("page_size", page::size(request.page_size, 50, 1_000));
    let before = v.take("page_token", page::decode(&eco_id, &request.page_token)).flatten();
    v.finish()?;
    Ok(AuditPage { eco_id, size: size.unwrap_or_default(), before })
}

/// An entry for the wire.
pub(super) fn audit_entry(entry: Entry) -> pb::AuditEntry {
    let json = |value: Option<serde_json::Value>| value.map(|value| value.to_string()).unwrap_or_default();
    pb::AuditEntry {
        audit_id: entry.audit_id,
        audit_time: Some(timestamp(entry.audit_time)),
        actor: entry.actor,
        subject: entry.subject,
        action: entry.action,
        subject_id: entry.subject_id,
        eco_id: entry.eco_id.unwrap_or_default(),
        before_json: json(entry.before),
        after_json: json(entry.after),
    }
}
