//! `/api/cron/*`: what a scheduler calls.

use axum::{Json, extract::State};
use chrono::Utc;
use nexus_core::money::Micros;
use nexus_proto::billing::v1::{OverageError, ProcessOverageResponse};
use serde::Serialize;

use crate::{App, auth::Scheduler, error::Error, format};

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

pub(super) async fn process_overage(State(app): State<App>, _: Scheduler) -> Result<Json<Run>, Error> {
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
