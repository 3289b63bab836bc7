//! `/api/usage/forecast`: what a user's period is expected to come to.

use axum::{Json, extract::State};
use nexus_core::money::Micros;
use nexus_proto::analytics::v1 as analytics;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{App, auth::User, convert, error::Error, format};

/// By the end of the current period. Four times of five the end is within the range.
#[derive(Serialize, ToSchema)]
pub(super) struct Forecast {
    /// Calls (units) so far.
    api_calls: i64,
    /// Calls by the end.
    expected_calls: i64,
    /// Lower end of the range.
    low_calls: i64,
    /// Upper end of the range.
    high_calls: i64,
    /// Calls beyond which others are refused, or else cost; -1: unlimited.
    limit: i64,
    /// When they are expected to be used up; null: not in this period.
    #[schema(format = DateTime)]
    limit_reached_at: Option<String>,
    /// What the overage will cost, in `currency`.
    expected_overage_cost: f64,
    low_overage_cost: f64,
    high_overage_cost: f64,
    /// What the subscription costs a month, in `currency`.
    subscription_cost: f64,
    /// ISO 4217.
    currency: String,
    #[schema(format = DateTime)]
    period_start: String,
    #[schema(format = DateTime)]
    period_end: String,
    /// When the forecast was made.
    #[schema(format = DateTime)]
    timestamp: String,
}

/// What the period will come to
///
/// When the limit is reached, and what the overage will cost.
#[utoipa::path(get, path = "/api/usage/forecast", tag = "usage", responses(
    (status = 200, body = Forecast, description = "The forecast"),
    (status = 403, description = "The account is closed: nothing is to come of it"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn show(State(app): State<App>, user: User) -> Result<Json<Forecast>, Error> {
    Ok(Json(Forecast::of(app.backend.forecast(&user, "").await?)?))
}

impl Forecast {
    fn of(forecast: analytics::ForecastUsageResponse) -> Result<Self, Error> {
        let amount = |micros| format::decimal(Micros(micros));
        let time = |field, at: &Option<_>| convert::required_time(field, at.as_ref()).map(format::time);
        let reached = convert::optional_time("limit_reached_time", forecast.limit_reached_time.as_ref())?;
        Ok(Self {
            api_calls: forecast.recorded_count,
            expected_calls: forecast.expected_count,
            low_calls: forecast.low_count,
            high_calls: forecast.high_count,
            limit: forecast.limit_count,
            limit_reached_at: reached.map(format::time),
            expected_overage_cost: amount(forecast.expected_overage_micros),
            low_overage_cost: amount(forecast.low_overage_micros),
            high_overage_cost: amount(forecast.high_overage_micros),
            subscription_cost: amount(forecast.subscription_micros),
            period_start: time("period_start_time", &forecast.period_start_time)?,
            period_end: time("period_end_time", &forecast.period_end_time)?,
            timestamp: time("as_of_time", &forecast.as_of_time)?,
            currency: forecast.currency_code,
        })
    }
}
