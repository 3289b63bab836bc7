//! `/api/subscriptions/*`: a user's subscription, the checkout that leads to one, its end, and that it goes on.

use axum::{Json, extract::State};
use chrono::TimeDelta;
use nexus_core::{money::Micros, plan::Plan};
use nexus_kit::{convert::plan_to_proto, validate::Violations};
use nexus_proto::{billing::v1 as billing, common::v1 as common};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{App, auth::User, body::Body, convert, error::Error, format};

/// Stripe's times are whole seconds, ours need not be.
const WHOLE_SECONDS: TimeDelta = TimeDelta::seconds(1);

#[derive(Serialize, ToSchema)]
pub(super) struct Subscription {
    plan: &'static str,
    status: &'static str,
    /// What the plan costs a month; null: it has no price in the account's currency.
    price: Option<f64>,
    currency: String,
    #[schema(format = DateTime)]
    period_start: String,
    #[schema(format = DateTime)]
    period_end: String,
    /// Whether the plan is paid for by a subscription at Stripe.
    paid_at_stripe: bool,
    /// Whether it ends with its current period, or before.
    cancel_at_period_end: bool,
    /// When it ends by itself.
    #[schema(format = DateTime)]
    cancel_at: Option<String>,
    /// The plan that waits for the period's end.
    next_plan: Option<&'static str>,
    #[schema(format = DateTime)]
    next_plan_at: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Checkout {
    session_id: String,
    checkout_url: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct CheckoutRequest {
    #[schema(pattern = "^(pro|enterprise)$")]
    plan: String,
    /// A repeat returns the first answer.
    #[schema(format = Uuid)]
    request_id: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct CancelRequest {
    /// Whether it ends now, and not with its billing period.
    #[schema(default = false)]
    apply_now: Option<bool>,
    /// A repeat returns the first answer.
    #[schema(format = Uuid)]
    request_id: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct ReactivateRequest {
    /// A repeat returns the first answer.
    #[schema(format = Uuid)]
    request_id: Option<String>,
}

/// The subscription
#[utoipa::path(get, path = "/api/subscriptions/current", tag = "subscriptions", responses(
    (status = 200, body = Subscription, description = "What the account has, and what comes after"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn current(State(app): State<App>, user: User) -> Result<Json<Subscription>, Error> {
    Ok(Json(Subscription::of(app.backend.subscription(&user, "").await?)?))
}

/// Open a checkout
///
/// It leads to a subscription. One of the same plan that is open is returned again.
#[utoipa::path(post, path = "/api/subscriptions/checkout", tag = "subscriptions", request_body = CheckoutRequest, responses(
    (status = 200, body = Checkout, description = "Where the customer goes on"),
    (status = 402, description = "Stripe refused"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account does not exist"),
    (status = 409, description = "There is a subscription already"),
))]
pub(super) async fn checkout(
    State(app): State<App>,
    user: User,
    mut body: Body,
) -> Result<Json<Checkout>, Error> {
    let (word, request_id) = (body.text("plan"), body.request_id());
    body.finish()?;
    let plan = match word.parse::<Plan>() {
        Ok(plan) if plan != Plan::Free => plan,
        Ok(_) | Err(_) => return Err(Violations::one("plan", "must be pro or enterprise").into()),
    };
    let request = billing::CreateCheckoutSessionRequest {
        eco_id: String::new(),
        plan: plan_to_proto(plan).into(),
        request_id,
    };
    let opened = app.backend.create_checkout_session(&user, request).await?;
    Ok(Json(Checkout { session_id: opened.session_id, checkout_url: opened.url }))
}

/// End the subscription
///
/// Without a body: with its period.
#[utoipa::path(post, path = "/api/subscriptions/cancel", tag = "subscriptions", request_body = Option<CancelRequest>, responses(
    (status = 200, body = Subscription, description = "The subscription as it is now"),
    (status = 402, description = "Stripe refused"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account does not exist"),
    (status = 409, description = "There is no subscription, or another change came after this request"),
))]
pub(super) async fn cancel(
    State(app): State<App>,
    user: User,
    body: Option<Body>,
) -> Result<Json<Subscription>, Error> {
    let mut body = body.unwrap_or_default();
    let request = billing::CancelSubscriptionRequest {
        eco_id: String::new(),
        apply_now: body.flag("apply_now"),
        request_id: body.request_id(),
    };
    body.finish()?;
    Ok(Json(Subscription::of(app.backend.cancel_subscription(&user, request).await?)?))
}

/// Keep the plan
///
/// A subscription goes on that was to end, and a lower plan that waits does not come.
#[utoipa::path(post, path = "/api/subscriptions/reactivate", tag = "subscriptions", request_body = Option<ReactivateRequest>, responses(
    (status = 200, body = Subscription, description = "The subscription as it is now"),
    (status = 402, description = "Stripe refused"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account does not exist"),
    (status = 409, description = "There is no subscription, or another change came after this request"),
))]
pub(super) async fn reactivate(
    State(app): State<App>,
    user: User,
    body: Option<Body>,
) -> Result<Json<Subscription>, Error> {
    let mut body = body.unwrap_or_default();
    let request =
        billing::ReactivateSubscriptionRequest { eco_id: String::new(), request_id: body.request_id() };
    body.finish()?;
    Ok(Json(Subscription::of(app.backend.reactivate_subscription(&user, request).await?)?))
}

impl Subscription {
    pub(super) fn of(shown: billing::Subscription) -> Result<Self, Error> {
        let time = |field, at| convert::optional_time(field, at).map(|at| at.map(format::time));
        let next_plan_at = time("next_plan_time", shown.next_plan_time.as_ref())?;
        let next_plan = match shown.next_plan() {
            common::Plan::Unspecified => None,
            plan => Some(convert::plan_word(plan.into())?),
        };
        let ends = convert::optional_time("cancel_time", shown.cancel_time.as_ref())?;
        let period_end = convert::required_time("period_end_time", shown.period_end_time.as_ref())?;
        Ok(Self {
            plan: convert::plan_word(shown.plan)?,
            status: convert::status_word(shown.status)?,
            price: shown.monthly_micros.map(|micros| format::decimal(Micros(micros))),
            currency: shown.currency_code.clone(),
            period_start: format::time(convert::required_time(
                "period_start_time",
                shown.period_start_time.as_ref(),
            )?),
            period_end: format::time(period_end),
            paid_at_stripe: !shown.stripe_subscription_id.is_empty(),
            cancel_at_period_end: ends.is_some_and(|ends| ends - period_end < WHOLE_SECONDS),
            cancel_at: ends.map(format::time),
            next_plan,
            next_plan_at,
        })
    }
}
