//! Requests and answers of ListReconciliations.

use nexus_kit::{
    auth::{Caller, Scope},
    convert::timestamp,
    page,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Service;
use crate::{
    app::list_reconciliations,
    domain::reconciliation::{Listed, Status as State},
    error::Error,
};

/// What page tokens of the list are bound to.
const LIST: &str = "reconciliations";

pub(super) async fn list(
    service: &Service,
    request: &Request<pb::ListReconciliationsRequest>,
) -> Result<Response<pb::ListReconciliationsResponse>, Status> {
    Caller::of(request)?.require_admin_or(&[Scope::BillingRun])?;
    let (size, after) = page(request.get_ref()).map_err(Error::from)?;
    let (found, next) = list_reconciliations::run(&service.pool, after, size).await?;
    Ok(Response::new(pb::ListReconciliationsResponse {
        reconciliations: found.into_iter().map(reconciliation).collect(),
        next_page_token: next.map(|id| page::encode(&LIST, &id)).unwrap_or_default(),
    }))
}

fn page(request: &pb::ListReconciliationsRequest) -> Result<(i64, Option<Uuid>), Violations> {
    let mut v = Violations::new();
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    let after = v.take("page_token", page::decode(&LIST, &request.page_token));
    v.finish()?;
    Ok((size.unwrap_or_default(), after.flatten()))
}

fn reconciliation(listed: Listed) -> pb::Reconciliation {
    let status = match listed.status {
        State::Running => pb::ReconciliationStatus::Running,
        State::Finished => pb::ReconciliationStatus::Finished,
        State::Failed => pb::ReconciliationStatus::Failed,
    };
    let left = listed.left.into_iter().map(|(kind, differences_count)| pb::DifferenceCount {
        kind: kind.as_str().to_owned(),
        differences_count,
    });
    pb::Reconciliation {
        reconciliation_id: listed.reconciliation_id.to_string(),
        status: status.into(),
        limited: listed.limited,
        repair: listed.repair,
        accounts_count: listed.accounts,
        periods_count: listed.periods,
        items_count: listed.items,
        differences_count: listed.differences,
        repaired_count: listed.repaired,
        left: left.collect(),
        start_time: Some(timestamp(listed.started_time)),
        end_time: listed.finished_time.map(timestamp),
    }
}
