//! `/api/admin/revenue`: revenue by month, for admins.

use axum::{Json, extract::State};
use nexus_core::money::{Currency, Micros};
use nexus_proto::analytics::v1 as analytics;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::{App, auth::Admin, convert, error::Error, format, query::Params};

#[derive(Serialize, ToSchema)]
pub(super) struct Revenue {
    /// Oldest first.
    months: Vec<Month>,
    /// Months that were looked at.
    period_months: i32,
    /// When the history of the MRR begins; of the months before only the overage is known. Null: nothing is missing.
    #[schema(format = DateTime)]
    history_start: Option<String>,
    /// Currencies that there is revenue in.
    currencies: Vec<String>,
}

/// A calendar month (UTC) and what moved the MRR in it:
/// `mrr = mrr of the month before + opening + new + reactivation + expansion - contraction - churn`.
#[derive(Serialize, ToSchema)]
struct Month {
    #[schema(pattern = "^[0-9]{4}-[0-9]{2}$")]
    month: String,
    /// At its end; of this month, now.
    mrr: f64,
    /// Of accounts that had never paid before.
    new: f64,
    /// Of accounts that pay again.
    reactivation: f64,
    /// Of accounts that paid less before.
    expansion: f64,
    /// Lost with accounts that pay less now.
    contraction: f64,
    /// Lost with accounts that pay nothing any more.
    churn: f64,
    /// That was there when the history began.
    opening: f64,
    /// Overage that was charged, less what was credited.
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
    /// ISO 4217: revenue in this currency alone.
    #[param(pattern = "^[A-Za-z]{3}$", default = "USD")]
    currency: Option<String>,
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
    let currency = params.word::<Currency>("currency", "the currencies of ISO 4217");
    let currency_code = currency.unwrap_or(Currency::USD).to_string();
    params.finish()?;
    let request = analytics::GetRevenueHistoryRequest { months_count: period_months, currency_code };
    let history = app.backend.revenue(&admin, request).await?;
    let start = convert::optional_time("history_start_time", history.history_start_time.as_ref())?;
    Ok(Json(Revenue {
        months: history.months.into_iter().map(Month::from).collect(),
        period_months,
        history_start: start.map(format::time),
        currencies: history.currency_codes,
    }))
}

impl From<analytics::MonthlyRevenue> for Month {
    fn from(month: analytics::MonthlyRevenue) -> Self {
        let amount = |micros| format::decimal(Micros(micros));
        Month {
            month: month.month,
            mrr: amount(month.mrr_micros),
            new: amount(month.new_micros),
            reactivation: amount(month.reactivation_micros),
            opening: amount(month.opening_micros),
            expansion: amount(month.expansion_micros),
            contraction: amount(month.contraction_micros),
            churn: amount(month.churn_micros),
            overage: amount(month.overage_micros),
            currency: month.currency_code,
        }
    }
}
