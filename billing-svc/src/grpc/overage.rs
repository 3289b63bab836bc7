//! Requests and answers about overage and charges.

use nexus_core::{id::EcoId, money};
use nexus_kit::{convert::timestamp, page, validate::Violations};
use nexus_proto::billing::v1 as pb;

use crate::{
    app::list_charges::Cursor,
    domain::{
        charge::{Charge, ChargeStatus},
        overage::Facts,
    },
    error::Error,
};

/// An account's overage for the wire. The current period is never settled: what is due is rounded down.
pub(super) fn overage(facts: Facts) -> Result<pb::GetOverageResponse, Error> {
    let overage = facts.overage()?;
    let due = money::due(overage.exact, facts.currency.minor_unit(), false)?;
    let billed = facts.ledger.billed;
    Ok(pb::GetOverageResponse {
        overage_count: overage.units,
        overage_micros: overage.exact.0,
        due_micros: due.0,
        billed_micros: billed.0,
        invoiced: billed.0 > 0 && billed == due,
        currency_code: facts.currency.to_string(),
        included_count: facts.included.unwrap_or(-1),
        period_start_time: Some(timestamp(facts.period.start)),
        period_end_time: Some(timestamp(facts.period.end)),
        eco_id: facts.eco_id,
    })
}

/// Reads the page of a request to list charges.
pub(super) fn charge_page(
    request: &pb::ListChargesRequest,
    eco_id: &EcoId,
) -> Result<(i64, Option<Cursor>), Violations> {
    let mut v = Violations::new();
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    let after = v.take("page_token", page::decode(eco_id, &request.page_token)).flatten();
    v.finish()?;
    Ok((size.unwrap_or_default(), after))
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
