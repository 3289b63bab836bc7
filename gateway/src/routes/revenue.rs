//! `/api/admin/revenue`: revenue by month, for admins.

use axum::{Json, extract::State};
use nexus_core::money::Micros;
use nexus_proto::analytics::v1 as analytics;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::{App, auth::Admin, error::Error, format, query::Params};

#[derive(Serialize, ToSchema)]
pub(super) struct Revenue {
    /// Oldest first.
    months: Vec<Month>,
    /// Months that were looked at.
    period_months: i32,
}

/// A calendar month (UTC) and what moved the MRR in it.
#[derive(Serialize, ToSchema)]
struct Month {
    #[schema(pattern = "^[0-9]{4}-[0-9]{2}$")]
    month: String,
    /// At its end; of this month, now.
    mrr: f64,
    new: f64,
    expansion: f64,
    contraction: f64,
    churn: f64,
    /// Overage that was charged.
    overage: f64,
    /// ISO 4217.
    currency: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct RevenueParams {
    /// Months up to and including this one; above 60 counts as 60.
    #[param(minimum = 1, default = 12)]
    months: Option<i32>,
}

/// Revenue by month
///
/// With the movements of the MRR.
#[utoipa::path(get, path = "/api/admin/revenue", tag = "admin", params(RevenueParams), responses(
    (status = 200, body = Revenue, description = "The months"),
))]
pub(super) async fn show(
    State(app): State<App>,
    Admin(admin): Admin,
    mut params: Params,
) -> Result<Json<Revenue>, Error> {
    let period_months = params.months(12);
    params.finish()?;
    let history = app.backend.revenue(&admin, period_months).await?;
    Ok(Json(Revenue { months: history.months.into_iter().map(Month::from).collect(), period_months }))
}

impl From<analytics::MonthlyRevenue> for Month {
    fn from(month: analytics::MonthlyRevenue) -> Self {
        let amount = |micros| format::decimal(Micros(micros));
        Month {
            month: month.month,
            mrr: amount(month.mrr_micros),
            new: amount(month.new_micros),
            expansion: amount(month.expansion_micros),
            contraction: amount(month.contraction_micros),
            churn: amount(month.churn_micros),
            overage: amount(month.overage_micros),
            currency: month.currency_code,
        }
    }
}
