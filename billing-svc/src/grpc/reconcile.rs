//! Requests and answers of Reconcile.

use nexus_kit::{
    convert::{datetime, timestamp},
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;

use super::overage::MAX_ACCOUNTS;
use crate::{
    app::reconcile as app,
    domain::reconciliation::{Difference, Scope, Status},
};

/// Reads a request.
pub(super) fn request(request: pb::ReconcileRequest, actor: String) -> Result<app::Request, Violations> {
    let mut v = Violations::new();
    let request_id = v.optional_uuid("request_id", &request.request_id);
    v.require(request.account_ids.len() <= MAX_ACCOUNTS, "account_ids", "must have at most 1,000 entries");
    for (i, id) in request.account_ids.iter().take(MAX_ACCOUNTS).enumerate() {
        v.eco_id(&format!("account_ids[{i}]"), id);
    }
    let period_time = request.period_time.as_ref().and_then(|at| v.take("period_time", datetime(at)));
    v.finish()?;
    let accounts = (!request.account_ids.is_empty()).then_some(request.account_ids);
    Ok(app::Request { request_id, scope: Scope { accounts, period_time }, repair: request.repair, actor })
}

/// The answer.
pub(super) fn response(answer: app::Answer) -> pb::ReconcileResponse {
    let app::Snapshot { reconciliation_id, status, findings, duration_ms } = match answer {
        app::Answer::AlreadyRunning => {
            return pb::ReconcileResponse { already_running: true, ..Default::default() };
        }
        app::Answer::Found(snapshot) => snapshot,
    };
    pb::ReconcileResponse {
        reconciliation_id: reconciliation_id.to_string(),
        running: status == Status::Running,
        already_running: false,
        accounts_count: i32::try_from(findings.accounts).unwrap_or(i32::MAX),
        periods_count: findings.periods,
        items_count: findings.items,
        differences_count: findings.total,
        repaired_count: i32::try_from(findings.repaired).unwrap_or(i32::MAX),
        differences: findings.differences.into_iter().map(difference).collect(),
        duration_ms,
    }
}

fn difference(difference: Difference) -> pb::Difference {
    pb::Difference {
        eco_id: difference.eco_id,
        kind: difference.kind.as_str().to_owned(),
        message: difference.message,
        amount_micros: difference.amount.0,
        currency_code: difference.currency,
        period_start_time: difference.period_start.map(timestamp),
        charge_id: difference.charge_id,
        stripe_invoice_item_id: difference.item_id,
        repaired: difference.repaired,
    }
}
