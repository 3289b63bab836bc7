//! `/api/usage/spend-cap`: what a user's overage may cost in a period.

use axum::{Json, extract::State};
use nexus_core::money::Micros;
use nexus_proto::billing::v1 as billing;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{App, auth::User, body::Body, convert, error::Error, format};

#[derive(Serialize, ToSchema)]
pub(super) struct SpendCap {
    /// What the overage of a period may cost, in `currency`, as all amounts here; null: there is no cap.
    spend_cap_usd: Option<f64>,
    spent_usd: f64,
    left_usd: Option<f64>,
    /// ISO 4217: the account's.
    currency: String,
    /// Calls of the period that the cap allows; -1: it refuses none.
    limit: i64,
    #[schema(format = DateTime)]
    period_end: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct NewSpendCap {
    /// In `currency`, in whole cents (the smallest amount that is charged in it); null: no cap any more.
    #[schema(required, minimum = 0, multiple_of = 0.01)]
    spend_cap_usd: Option<f64>,
    /// ISO 4217: another one than the account's is refused, so that nobody caps in another than was meant.
    #[schema(pattern = "^[A-Za-z]{3}$", default = "USD")]
    currency: Option<String>,
    /// A repeat returns the first answer.
    #[schema(format = Uuid)]
    request_id: Option<String>,
}

/// The spend cap
#[utoipa::path(get, path = "/api/usage/spend-cap", tag = "usage", responses(
    (status = 200, body = SpendCap, description = "The cap, and what is left of it"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn show(State(app): State<App>, user: User) -> Result<Json<SpendCap>, Error> {
    let overage = app.backend.overage(&user, "").await?;
    Ok(Json(SpendCap::of(&overage)?))
}

/// Set or remove the spend cap
///
/// In force at once, in every period from the current one on.
#[utoipa::path(put, path = "/api/usage/spend-cap", tag = "usage", request_body = NewSpendCap, responses(
    (status = 200, body = SpendCap, description = "The cap as it is now"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn set(State(app): State<App>, user: User, mut body: Body) -> Result<Json<SpendCap>, Error> {
    let spend_cap_micros = body.amount("spend_cap_usd").map(|cap| cap.0);
    let currency = body.given_text("currency");
    let request = billing::SetSpendCapRequest {
        eco_id: String::new(),
        spend_cap_micros,
        // No cap is the same in every currency.
        currency_code: currency.unwrap_or_else(|| spend_cap_micros.map_or("", |_| "USD").to_owned()),
        request_id: body.request_id(),
    };
    body.finish()?;
    app.backend.set_spend_cap(&user, request).await?;
    let overage = app.backend.overage(&user, "").await?;
    Ok(Json(SpendCap::of(&overage)?))
}

impl SpendCap {
    pub(super) fn of(overage: &billing::GetOverageResponse) -> Result<Self, Error> {
        let amount = |micros| format::decimal(Micros(micros));
        Ok(Self {
            spend_cap_usd: overage.spend_cap_micros.map(amount),
            spent_usd: amount(overage.overage_micros),
            left_usd: overage.spend_cap_left_micros.map(amount),
            currency: convert::currency(&overage.currency_code)?.to_string(),
            limit: overage.spend_cap_limit_count,
            period_end: format::time(convert::required_time("period_end", overage.period_end_time.as_ref())?),
        })
    }
}
