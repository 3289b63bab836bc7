//! `/api/usage/forecast`: what a user's period is expected to come to.

use axum::{Json, extract::State};
use nexus_core::money::Micros;
use nexus_proto::analytics::v1 as analytics;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{App, auth::User, convert, error::Error, format};

/// By the end of the current period, at the pace so far.
#[derive(Serialize, ToSchema)]
pub(super) struct Forecast {
    expected_calls: i64,
    /// Lower end of the range.
    low_calls: i64,
    /// Upper end of the range.
    high_calls: i64,
    /// When the limit is expected to be reached; null: not in this period.
    #[schema(format = DateTime)]
    limit_reached_at: Option<String>,
    /// What the overage is expected to cost, in `currency`.
    expected_overage_cost: f64,
    /// ISO 4217.
    currency: String,
}

/// What the period will come to
///
/// When the limit is reached, and what the overage will cost.
#[utoipa::path(get, path = "/api/usage/forecast", tag = "usage", responses(
    (status = 200, body = Forecast, description = "The forecast"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn show(State(app): State<App>, user: User) -> Result<Json<Forecast>, Error> {
    Ok(Json(Forecast::of(app.backend.forecast(&user).await?)?))
}

impl Forecast {
    fn of(forecast: analytics::ForecastUsageResponse) -> Result<Self, Error> {
        let reached = convert::optional_time("limit_reached_time", forecast.limit_reached_time.as_ref())?;
        Ok(Self {
            expected_calls: forecast.expected_count,
            low_calls: forecast.low_count,
            high_calls: forecast.high_count,
            limit_reached_at: reached.map(format::time),
            expected_overage_cost: format::decimal(Micros(forecast.expected_overage_micros)),
            currency: forecast.currency_code,
        })
    }
}
