//! `/api/cron/*`: what a scheduler calls.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use chrono::Utc;
use nexus_core::money::Micros;
use nexus_kit::validate::Violations;
use nexus_proto::billing::v1::{OverageError, ProcessOverageResponse};
use serde::Serialize;

use crate::{App, auth::Scheduler, body, error::Error, format};

#[derive(Serialize)]
pub(super) struct Run {
    success: bool,
    results: Results,
    #[serde(skip_serializing_if = "String::is_empty")]
    run_id: String,
    running: bool,
    already_running: bool,
    duration_ms: i64,
    timestamp: String,
}

#[derive(Serialize)]
struct Results {
    processed: i32,
    charged: i32,
    total_usd: String,
    errors: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    #[serde(rename = "ecoId")]
    eco_id: String,
    error: String,
    reason: String,
}

pub(super) async fn process_overage(
    State(app): State<App>,
    _: Scheduler,
    sent: Result<Bytes, BytesRejection>,
) -> Result<Json<Run>, Error> {
    check_body(&sent.map_err(body::unread)?)?;
    let run = app.backend.process_overage().await?;
    Ok(Json(Run {
        success: true,
        results: results(&run)?,
        run_id: run.run_id,
        running: run.running,
        already_running: run.already_running,
        duration_ms: run.duration_ms,
        timestamp: format::time(Utc::now()),
    }))
}

/// The call takes no parameters, so a body may be left out; one that is there is JSON all the same.
fn check_body(body: &[u8]) -> Result<(), Violations> {
    if body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        return Ok(());
    }
    Err(Violations::one("body", "must be JSON, or empty"))
}

fn results(run: &ProcessOverageResponse) -> Result<Results, Error> {
    let failed = |e: &OverageError| Failed {
        eco_id: e.eco_id.clone(),
        error: e.message.clone(),
        reason: e.reason.clone(),
    };
    Ok(Results {
        processed: run.processed_count,
        charged: run.charged_count,
        total_usd: format::plain(Micros(run.total_micros))?,
        errors: run.errors.iter().map(failed).collect(),
    })
}
