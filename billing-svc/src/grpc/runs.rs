//! The RPCs about the runs of ProcessOverage; requests and answers about them.

use nexus_core::{id::EcoId, money::Currency};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::timestamp,
    page,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Service, overage};
use crate::{
    app::{list_runs, process_overage::Snapshot},
    domain::run::{Run, RunStatus, Totals},
    error::Error,
};

type Answer<T> = Result<Response<T>, Status>;

/// What page tokens of the list of runs are bound to.
const LIST: &str = "overage runs";

pub(super) async fn get(
    service: &Service,
    request: &Request<pb::GetOverageRunRequest>,
) -> Answer<pb::GetOverageRunResponse> {
    Caller::of(request)?.require_admin_or(&[Scope::BillingRun])?;
    let run_id = run_id(&request.get_ref().run_id).map_err(Error::from)?;
    let found = list_runs::get(&service.pool, run_id).await?;
    let mut totals = list_runs::totals(&service.pool, &[run_id]).await?;
    let totals = totals.remove(&run_id).unwrap_or_default();
    Ok(Response::new(pb::GetOverageRunResponse { run: Some(run(&found, totals)) }))
}

pub(super) async fn list(
    service: &Service,
    request: &Request<pb::ListOverageRunsRequest>,
) -> Answer<pb::ListOverageRunsResponse> {
    Caller::of(request)?.require_admin_or(&[Scope::BillingRun])?;
    let (size, after) = page(request.get_ref()).map_err(Error::from)?;
    let (found, next) = list_runs::run(&service.pool, after, size).await?;
    let run_ids: Vec<_> = found.iter().map(|run| run.run_id).collect();
    let mut totals = list_runs::totals(&service.pool, &run_ids).await?;
    Ok(Response::new(pb::ListOverageRunsResponse {
        runs: found.iter().map(|it| run(it, totals.remove(&it.run_id).unwrap_or_default())).collect(),
        next_page_token: next.map(|run_id| page::encode(&LIST, &run_id)).unwrap_or_default(),
    }))
}

pub(super) async fn list_errors(
    service: &Service,
    request: &Request<pb::ListOverageRunErrorsRequest>,
) -> Answer<pb::ListOverageRunErrorsResponse> {
    Caller::of(request)?.require_admin_or(&[Scope::BillingRun])?;
    let asked = errors_page(request.get_ref()).map_err(Error::from)?;
    let (errors, next) =
        list_runs::errors(&service.pool, asked.run_id, asked.after.as_deref(), asked.size).await?;
    Ok(Response::new(pb::ListOverageRunErrorsResponse {
        errors: errors.into_iter().map(overage::error).collect(),
        next_page_token: next.map(|eco_id| page::encode(&asked.run_id, &eco_id)).unwrap_or_default(),
    }))
}

/// Reads the id of a run.
pub(super) fn run_id(text: &str) -> Result<Uuid, Violations> {
    let mut v = Violations::new();
    let run_id = required_run_id(&mut v, text);
    v.finish()?;
    Ok(run_id)
}

fn required_run_id(v: &mut Violations, text: &str) -> Uuid {
    v.require(!text.is_empty(), "run_id", "is required");
    v.optional_uuid("run_id", text).unwrap_or_default()
}

/// Reads a request to list runs.
fn page(request: &pb::ListOverageRunsRequest) -> Result<(i64, Option<Uuid>), Violations> {
    let mut v = Violations::new();
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    let after = v.take("page_token", page::decode(&LIST, &request.page_token));
    v.finish()?;
    Ok((size.unwrap_or_default(), after.flatten()))
}

/// Which of the accounts that a run could not charge are asked for.
struct ErrorsPage {
    run_id: Uuid,
    size: i64,
    after: Option<String>,
}

/// Reads a request to list them.
fn errors_page(request: &pb::ListOverageRunErrorsRequest) -> Result<ErrorsPage, Violations> {
    let mut v = Violations::new();
    let run_id = required_run_id(&mut v, &request.run_id);
    let size = v.take("page_size", page::size(request.page_size, 50, 1_000));
    // A token belongs to a run.
    let after: Option<String> = v.take("page_token", page::decode(&run_id, &request.page_token)).flatten();
    v.require(after.as_deref().is_none_or(|id| EcoId::parse(id).is_ok()), "page_token", page::BadToken);
    v.finish()?;
    Ok(ErrorsPage { run_id, size: size.unwrap_or_default(), after })
}

/// A run for the wire.
fn run(run: &Run, totals: Totals) -> pb::OverageRun {
    pb::OverageRun {
        run_id: run.run_id.to_string(),
        status: status(run.status, run.is_cut_off()).into(),
        accounts_count: run.figures.known(),
        processed_count: run.figures.processed,
        charged_count: run.figures.charged,
        failed_count: run.figures.failed,
        total_micros: run.figures.total.0,
        currency_code: Currency::USD.to_string(),
        limited: run.limited,
        start_time: Some(timestamp(run.started_time)),
        heartbeat_time: Some(timestamp(run.heartbeat_time)),
        end_time: run.finished_time.map(timestamp),
        duration_ms: run.duration_ms(),
        totals: overage::totals(totals),
    }
}

/// A look at a run for the wire.
pub(super) fn watched(run: Snapshot) -> pb::WatchOverageRunResponse {
    pb::WatchOverageRunResponse {
        accounts_count: run.figures.known(),
        processed_count: run.figures.processed,
        charged_count: run.figures.charged,
        failed_count: run.figures.failed,
        total_micros: run.figures.total.0,
        currency_code: Currency::USD.to_string(),
        running: run.is_at_work(),
        status: status(run.status, run.cut_off).into(),
        duration_ms: run.duration_ms,
    }
}

fn status(status: RunStatus, cut_off: bool) -> pb::OverageRunStatus {
    match status {
        RunStatus::Running if cut_off => pb::OverageRunStatus::Silent,
        RunStatus::Running => pb::OverageRunStatus::Running,
        RunStatus::Finished => pb::OverageRunStatus::Finished,
        RunStatus::Failed => pb::OverageRunStatus::Failed,
    }
}
