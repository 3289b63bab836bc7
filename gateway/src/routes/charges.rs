//! `/api/usage/charges` and `/api/admin/…/charges`: what an account was charged, and why. Whose a charge is, the
//! service decides.

use axum::{Json, extract::State};
use nexus_core::money::Micros;
use nexus_proto::billing::v1 as billing;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::{
    App,
    auth::{Admin, User},
    convert,
    error::Error,
    format,
    query::{Named, Params},
};

/// A charge, as it is in the ledger.
#[derive(Serialize, ToSchema)]
pub(super) struct Charge {
    charge_id: String,
    eco_id: String,
    status: &'static str,
    /// In `currency`; negative: a credit.
    amount: f64,
    /// ISO 4217.
    currency: String,
    /// Number of the charge within its period, from 1.
    sequence: i32,
    /// Number of the attempt, from 1.
    attempt: i32,
    /// Overage calls of the period before this charge.
    from_calls: i64,
    /// Overage calls after it.
    to_calls: i64,
    stripe_invoice_item_id: Option<String>,
    /// Why it failed.
    failure_reason: Option<String>,
    #[schema(format = DateTime)]
    period_start: String,
    #[schema(format = DateTime)]
    period_end: String,
    #[schema(format = DateTime)]
    created_at: String,
}

impl TryFrom<billing::Charge> for Charge {
    type Error = Error;

    fn try_from(charge: billing::Charge) -> Result<Self, Error> {
        let time = |field, at: &Option<_>| convert::required_time(field, at.as_ref()).map(format::time);
        Ok(Self {
            status: convert::charge_status_word(charge.status())?,
            period_start: time("period_start_time", &charge.period_start_time)?,
            period_end: time("period_end_time", &charge.period_end_time)?,
            created_at: time("create_time", &charge.create_time)?,
            amount: format::decimal(Micros(charge.amount_micros)),
            charge_id: charge.charge_id,
            eco_id: charge.eco_id,
            currency: charge.currency_code,
            sequence: charge.sequence,
            attempt: charge.attempt,
            from_calls: charge.from_count,
            to_calls: charge.to_count,
            stripe_invoice_item_id: convert::some_text(charge.stripe_invoice_item_id),
            failure_reason: convert::some_text(charge.failure_reason),
        })
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Charges {
    /// Newest first.
    charges: Vec<Charge>,
    /// For the next page; null: there are no more.
    next_page_token: Option<String>,
}

/// A charge, and the arithmetic behind it.
#[derive(Serialize, ToSchema)]
pub(super) struct Explanation {
    charge: Charge,
    /// The arithmetic in a sentence.
    explanation: String,
    /// Due when it was made, in `currency`.
    due: f64,
    /// Charged before it, in `currency`.
    charged_before: f64,
    /// ISO 4217.
    currency: String,
    /// True: rounded for good, half up. False: rounded down, the period was open.
    settled: bool,
    /// Parts of the period, each with one plan; none where an item is corrected that was invoiced twice.
    segments: Vec<Segment>,
}

/// A part of a period with one plan.
#[derive(Serialize, ToSchema)]
struct Segment {
    segment: i32,
    plan: &'static str,
    plan_version: i32,
    /// Calls of the period when it began.
    from_calls: i64,
    /// Calls of the period when it ended, or to date.
    to_calls: i64,
    /// -1: unlimited.
    included_calls: i64,
    overage_calls: i64,
    /// Price of `price_per_calls` calls.
    price: f64,
    price_per_calls: i64,
    /// Its part of the exact cost.
    cost: f64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct ChargesParams {
    /// Charges a page; above 100 counts as 100.
    #[param(minimum = 1, default = 50)]
    limit: Option<i32>,
    /// `next_page_token` of the answer before.
    page_token: Option<String>,
}

/// What the account was charged
#[utoipa::path(get, path = "/api/usage/charges", tag = "usage", params(ChargesParams), responses(
    (status = 200, body = Charges, description = "A page of charges"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn list(State(app): State<App>, user: User, params: Params) -> Result<Json<Charges>, Error> {
    page(&app, &user, String::new(), params).await
}

/// Why a charge was made
#[utoipa::path(get, path = "/api/usage/charges/{charge_id}", tag = "usage",
    params(("charge_id" = uuid::Uuid, Path, description = "The charge")), responses(
    (status = 200, body = Explanation, description = "The charge with its arithmetic"),
    (status = 404, description = "The account has no such charge"),
    (status = 409, description = "What it was computed from is not kept"),
))]
pub(super) async fn explain(
    State(app): State<App>,
    user: User,
    Named(charge_id): Named,
) -> Result<Json<Explanation>, Error> {
    Ok(Json(explanation(app.backend.explain_charge(&user, &charge_id).await?)?))
}

/// What an account was charged
#[utoipa::path(get, path = "/api/admin/accounts/{id}/charges", tag = "admin",
    params(("id" = String, Path, description = "The account", pattern = "^eco_[A-Za-z0-9_.:-]{1,60}$"), ChargesParams), responses(
    (status = 200, body = Charges, description = "A page of charges"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn list_of(
    State(app): State<App>,
    Admin(admin): Admin,
    Named(id): Named,
    params: Params,
) -> Result<Json<Charges>, Error> {
    page(&app, &admin, id, params).await
}

/// Why any charge was made
#[utoipa::path(get, path = "/api/admin/charges/{charge_id}", tag = "admin",
    params(("charge_id" = uuid::Uuid, Path, description = "The charge")), responses(
    (status = 200, body = Explanation, description = "The charge with its arithmetic"),
    (status = 404, description = "There is no such charge"),
    (status = 409, description = "What it was computed from is not kept"),
))]
pub(super) async fn explain_any(
    State(app): State<App>,
    Admin(admin): Admin,
    Named(charge_id): Named,
) -> Result<Json<Explanation>, Error> {
    Ok(Json(explanation(app.backend.explain_charge(&admin, &charge_id).await?)?))
}

async fn page(app: &App, user: &User, eco_id: String, mut params: Params) -> Result<Json<Charges>, Error> {
    let page_size = params.limit(50);
    let page_token = params.page_token();
    params.finish()?;
    let request = billing::ListChargesRequest { eco_id, page_size, page_token };
    let page = app.backend.charges(user, request).await?;
    Ok(Json(Charges {
        charges: page.charges.into_iter().map(Charge::try_from).collect::<Result<_, _>>()?,
        next_page_token: convert::some_text(page.next_page_token),
    }))
}

fn explanation(explained: billing::ExplainChargeResponse) -> Result<Explanation, Error> {
    let amount = |micros| format::decimal(Micros(micros));
    let charge = explained.charge.ok_or_else(|| Error::Internal("the service left out charge".to_owned()))?;
    let segment = |segment: billing::ChargeSegment| {
        Ok::<_, Error>(Segment {
            segment: segment.segment,
            plan: convert::plan_word(segment.plan)?,
            plan_version: segment.plan_version,
            from_calls: segment.start_count,
            to_calls: segment.end_count,
            included_calls: segment.included_count,
            overage_calls: segment.overage_count,
            price: amount(segment.price_micros),
            price_per_calls: segment.price_per_count,
            cost: amount(segment.overage_micros),
        })
    };
    Ok(Explanation {
        charge: charge.try_into()?,
        explanation: explained.explanation,
        due: amount(explained.due_micros),
        charged_before: amount(explained.billed_before_micros),
        currency: explained.currency_code,
        settled: explained.settled,
        segments: explained.segments.into_iter().map(segment).collect::<Result<_, _>>()?,
    })
}
