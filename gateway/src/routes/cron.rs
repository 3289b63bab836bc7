//! `/api/cron/*`: what a scheduler calls.

use axum::{
    Json,
    extract::{Request, State},
};
use chrono::Utc;
use nexus_core::money::Micros;
use nexus_kit::validate::Violations;
use nexus_proto::billing::v1::{CurrencyTotal, OverageError, ProcessOverageResponse};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{App, auth::Scheduler, body, error::Error, format};

#[derive(Serialize, ToSchema)]
pub(super) struct Run {
    success: bool,
    results: Results,
    #[serde(skip_serializing_if = "String::is_empty")]
    run_id: String,
    /// Whether it goes on; the figures are those so far.
    running: bool,
    /// Whether another run was at work; nothing was done then.
    already_running: bool,
    duration_ms: i64,
    #[schema(format = DateTime)]
    timestamp: String,
}

#[derive(Serialize, ToSchema)]
struct Results {
    processed: i32,
    charged: i32,
    /// What was charged in US dollars, always with two decimals: `12.50`.
    total_usd: String,
    /// What was charged in each currency, US dollars among them: currencies are not added up.
    totals: Vec<Total>,
    errors: Vec<Failed>,
}

#[derive(Serialize, ToSchema)]
struct Total {
    /// ISO 4217.
    currency: String,
    total: f64,
}

#[derive(Serialize, ToSchema)]
struct Failed {
    #[serde(rename = "ecoId")]
    eco_id: String,
    error: String,
    reason: String,
}

/// Charge overage
///
/// Answers within 55 s; a longer run goes on. Run again at once, it charges nothing.
#[utoipa::path(post, path = "/api/cron/process-overage", tag = "scheduler",
    request_body(content = Option<serde_json::Value>, description = "May be left out; nothing is read of it"), responses(
    (status = 200, body = Run, description = "What the run did; an account's failure is an entry in `errors`"),
    (status = 409, description = "The database was restored, and must be reconciled with Stripe first"),
))]
pub(super) async fn process_overage(
    State(app): State<App>,
    _: Scheduler,
    request: Request,
) -> Result<Json<Run>, Error> {
    check_body(&body::whole(request, &app).await?)?;
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
    let total = |total: &CurrencyTotal| Total {
        currency: total.currency_code.clone(),
        total: format::decimal(Micros(total.total_micros)),
    };
    Ok(Results {
        processed: run.processed_count,
        charged: run.charged_count,
        total_usd: format::plain(Micros(run.total_micros))?,
        totals: run.totals.iter().map(total).collect(),
        errors: run.errors.iter().map(failed).collect(),
    })
}
