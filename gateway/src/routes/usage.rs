//! `/api/usage/*`: a user's own usage. No request names an account; the service takes the token's.

use axum::{Json, extract::State};
use nexus_core::{money::Micros, text::thousands};
use nexus_proto::{analytics::v1 as analytics, billing::v1 as billing, usage::v1 as usage};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::{App, auth::User, convert, error::Error, format, query::Params};

/// Where an account stands in its current period.
#[derive(Serialize, ToSchema)]
pub(super) struct Current {
    /// Calls (units) of the period.
    api_calls: i64,
    /// Calls that the plan includes; -1: unlimited.
    limit: i64,
    /// What is left of them, never below 0; -1: unlimited.
    remaining: i64,
    /// Calls beyond them that are charged.
    overage_calls: i64,
    /// May pass 100; 0 where the plan is unlimited.
    usage_percentage: f64,
    #[schema(format = DateTime)]
    period_start: String,
    #[schema(format = DateTime)]
    period_end: String,
    plan: &'static str,
}

impl Current {
    pub(super) fn of(usage: &usage::GetCurrentUsageResponse) -> Result<Self, Error> {
        let start = convert::required_time("period_start", usage.period_start_time.as_ref())?;
        let end = convert::required_time("period_end", usage.period_end_time.as_ref())?;
        Ok(Self {
            api_calls: usage.api_calls_count,
            limit: usage.limit_count,
            remaining: usage.remaining_count,
            overage_calls: usage.overage_count,
            usage_percentage: usage.usage_percentage,
            period_start: format::time(start),
            period_end: format::time(end),
            plan: convert::plan_word(usage.plan)?,
        })
    }
}

/// Where the account stands
///
/// Its usage of the current period, live.
#[utoipa::path(get, path = "/api/usage/current", tag = "usage", responses(
    (status = 200, body = Current, description = "The current period"),
    (status = 404, description = "The account does not exist: `No usage record found`"),
))]
pub(super) async fn current(State(app): State<App>, user: User) -> Result<Json<Current>, Error> {
    let usage = app.backend.current_usage(&user, "").await.map_err(|error| match error {
        Error::NotFound(_) => Error::NotFound("No usage record found"),
        error => error,
    })?;
    Ok(Json(Current::of(&usage)?))
}

#[derive(Serialize, ToSchema)]
pub(super) struct History {
    /// Days with usage, oldest first; today is among them, live.
    history: Vec<Day>,
    /// Days that were looked at.
    period_days: i32,
}

#[derive(Serialize, ToSchema)]
struct Day {
    #[serde(flatten)]
    total: DayTotal,
    top_endpoints: Vec<TopEndpoint>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct DayTotal {
    #[schema(format = Date)]
    date: String,
    total_calls: i64,
    /// Answered 2xx.
    successful_calls: i64,
    /// Answered 400 and above.
    failed_calls: i64,
    avg_response_time_ms: i64,
}

#[derive(Serialize, ToSchema)]
struct TopEndpoint {
    endpoint: String,
    method: String,
    count: i64,
    avg_response_time_ms: i64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct HistoryParams {
    /// Days up to and including today (UTC); above 365 counts as 365.
    #[param(minimum = 1, default = 30)]
    days: Option<i32>,
}

/// Usage by day
#[utoipa::path(get, path = "/api/usage/history", tag = "usage", params(HistoryParams), responses(
    (status = 200, body = History, description = "The days that have usage"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn history(
    State(app): State<App>,
    user: User,
    mut params: Params,
) -> Result<Json<History>, Error> {
    let days = params.days(30);
    params.finish()?;
    let history = app.backend.history(&user, "", days).await?;
    Ok(Json(History {
        history: history.days.into_iter().map(Day::from).collect(),
        period_days: history.days_count,
    }))
}

impl From<analytics::DailyUsage> for Day {
    fn from(mut day: analytics::DailyUsage) -> Self {
        let top_endpoints = std::mem::take(&mut day.top_endpoints).into_iter().map(|e| TopEndpoint {
            endpoint: e.endpoint,
            method: e.method,
            count: e.calls_count,
            avg_response_time_ms: format::millis(e.avg_response_time_ms),
        });
        Day { top_endpoints: top_endpoints.collect(), total: day.into() }
    }
}

impl From<analytics::DailyUsage> for DayTotal {
    fn from(day: analytics::DailyUsage) -> Self {
        DayTotal {
            date: day.date,
            total_calls: day.total_count,
            successful_calls: day.successful_count,
            failed_calls: day.failed_count,
            avg_response_time_ms: format::millis(day.avg_response_time_ms),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Endpoints {
    /// The 50 with the most calls, busiest first.
    endpoints: Vec<Endpoint>,
    period_days: i32,
}

#[derive(Serialize, ToSchema)]
struct Endpoint {
    /// Route template.
    endpoint: String,
    method: String,
    total_calls: i64,
    avg_response_time_ms: i64,
    /// Within 1.1 %, as all percentiles.
    p50_response_time_ms: i64,
    p95_response_time_ms: i64,
    p99_response_time_ms: i64,
    /// Share of calls answered 2xx, 0 to 1.
    success_rate: f64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct EndpointsParams {
    /// Days up to and including today (UTC); above 365 counts as 365.
    #[param(minimum = 1, default = 7)]
    days: Option<i32>,
}

/// The busiest endpoints
#[utoipa::path(get, path = "/api/usage/endpoints", tag = "usage", params(EndpointsParams), responses(
    (status = 200, body = Endpoints, description = "Endpoints with latency and success rate"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn endpoints(
    State(app): State<App>,
    user: User,
    mut params: Params,
) -> Result<Json<Endpoints>, Error> {
    let days = params.days(7);
    params.finish()?;
    let request = analytics::ListEndpointStatsRequest { days_count: days, ..Default::default() };
    let stats = app.backend.endpoints(&user, request).await?;
    Ok(Json(Endpoints {
        endpoints: stats.endpoints.into_iter().map(Endpoint::from).collect(),
        period_days: stats.days_count,
    }))
}

impl From<analytics::EndpointStats> for Endpoint {
    fn from(stats: analytics::EndpointStats) -> Self {
        Endpoint {
            endpoint: stats.endpoint,
            method: stats.method,
            total_calls: stats.total_count,
            avg_response_time_ms: format::millis(stats.avg_response_time_ms),
            p50_response_time_ms: format::millis(stats.p50_response_time_ms),
            p95_response_time_ms: format::millis(stats.p95_response_time_ms),
            p99_response_time_ms: format::millis(stats.p99_response_time_ms),
            success_rate: stats.success_rate,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Overage {
    has_overage: bool,
    overage_calls: i64,
    overage_cost_usd: f64,
    /// Whether something was charged and nothing more is due.
    invoiced: bool,
    #[schema(format = DateTime)]
    period_end: Option<String>,
    /// All of it in a sentence.
    message: String,
}

impl Overage {
    pub(super) fn of(overage: &billing::GetOverageResponse) -> Result<Self, Error> {
        let period_end = convert::optional_time("period_end", overage.period_end_time.as_ref())?;
        Ok(Self {
            has_overage: overage.overage_count > 0,
            overage_calls: overage.overage_count,
            overage_cost_usd: format::decimal(Micros(overage.overage_micros)),
            invoiced: overage.invoiced,
            period_end: period_end.map(format::time),
            message: message(overage)?,
        })
    }
}

/// Overage of the current period
#[utoipa::path(get, path = "/api/usage/overage", tag = "usage", responses(
    (status = 200, body = Overage, description = "What it costs, and what of it was charged"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn overage(State(app): State<App>, user: User) -> Result<Json<Overage>, Error> {
    let overage = app.backend.overage(&user, "").await?;
    Ok(Json(Overage::of(&overage)?))
}

/// What an account's owner should expect on the next invoice. What is still to come is what the period
/// will be settled at, half a cent rounded up, less what was charged.
fn message(overage: &billing::GetOverageResponse) -> Result<String, Error> {
    let calls = thousands(overage.overage_count);
    let billed = Micros(overage.billed_micros);
    if overage.overage_count == 0 && billed.0 == 0 {
        return Ok("No overage this period.".to_owned());
    }
    let settled = Micros(format::cents(Micros(overage.overage_micros))? * format::MICROS_PER_CENT);
    if billed.0 == 0 {
        let cost = format::dollars(settled)?;
        return Ok(format!(
            "You will be charged {cost} for {calls} overage calls at the end of your billing period."
        ));
    }
    let charged = format::dollars(billed)?;
    if overage.invoiced || settled == billed {
        return Ok(format!("You have been charged {charged} for {calls} overage calls this period."));
    }
    let difference = Micros(settled.0 - billed.0);
    if difference.0 < 0 {
        let credit = format::dollars(Micros(-difference.0))?;
        return Ok(format!("You have been charged {charged}; {credit} of it will be credited."));
    }
    let more = format::dollars(difference)?;
    Ok(format!("You have been charged {charged}; {more} more will follow at the end of your billing period."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(calls: i64, micros: i64, billed_micros: i64) -> Option<String> {
        let due_micros = micros / format::MICROS_PER_CENT * format::MICROS_PER_CENT;
        message(&billing::GetOverageResponse {
            overage_count: calls,
            overage_micros: micros,
            due_micros,
            billed_micros,
            invoiced: billed_micros > 0 && billed_micros == due_micros,
            ..Default::default()
        })
        .ok()
    }

    #[test]
    fn the_message_says_what_is_charged_and_what_is_to_come() {
        let cases = [
            ((0, 0, 0), "No overage this period."),
            (
                (5_000, 5_000_000, 0),
                "You will be charged $5.00 for 5,000 overage calls at the end of your billing period.",
            ),
            (
                (5, 5_000, 0),
                "You will be charged $0.01 for 5 overage calls at the end of your billing period.",
            ),
            (
                (5_000, 5_000_000, 5_000_000),
                "You have been charged $5.00 for 5,000 overage calls this period.",
            ),
            (
                (5_001, 5_001_000, 5_000_000),
                "You have been charged $5.00 for 5,001 overage calls this period.",
            ),
            (
                (7_500, 7_500_000, 5_000_000),
                "You have been charged $5.00; $2.50 more will follow at the end of your billing period.",
            ),
            ((1_000, 1_000_000, 5_000_000), "You have been charged $5.00; $4.00 of it will be credited."),
        ];
        for ((calls, micros, billed), expected) in cases {
            assert_eq!(shown(calls, micros, billed).as_deref(), Some(expected));
        }
    }
}
