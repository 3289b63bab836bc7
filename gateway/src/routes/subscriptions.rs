//! `/api/subscriptions/*`: a user's subscription, the checkout that leads to one, its end, and that it goes on.

use axum::{Json, extract::State};
use chrono::TimeDelta;
use nexus_core::{money::Micros, plan::Plan};
use nexus_kit::{convert::plan_to_proto, validate::Violations};
use nexus_proto::{billing::v1 as billing, common::v1 as common};
use serde::Serialize;

use crate::{App, auth::User, body::Body, convert, error::Error, format};

/// Stripe's times are whole seconds, ours need not be.
const WHOLE_SECONDS: TimeDelta = TimeDelta::seconds(1);

#[derive(Serialize)]
pub(super) struct Subscription {
    plan: &'static str,
    status: &'static str,
    /// What the plan costs a month; null: it has no price in the account's currency.
    price: Option<f64>,
    currency: String,
    period_start: String,
    period_end: String,
    /// Whether the plan is paid for by a subscription at Stripe.
    paid_at_stripe: bool,
    /// Whether it ends with its current period, or before.
    cancel_at_period_end: bool,
    /// When it ends by itself.
    cancel_at: Option<String>,
    /// The plan that waits for the period's end.
    next_plan: Option<&'static str>,
    next_plan_at: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Checkout {
    session_id: String,
    checkout_url: String,
}

pub(super) async fn current(State(app): State<App>, user: User) -> Result<Json<Subscription>, Error> {
    Ok(Json(Subscription::of(app.backend.subscription(&user).await?)?))
}

pub(super) async fn checkout(
    State(app): State<App>,
    user: User,
    mut body: Body,
) -> Result<Json<Checkout>, Error> {
    let (word, request_id) = (body.text("plan"), body.text("request_id"));
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

/// Without a body: with the period.
pub(super) async fn cancel(
    State(app): State<App>,
    user: User,
    body: Option<Body>,
) -> Result<Json<Subscription>, Error> {
    let mut body = body.unwrap_or_default();
    let request = billing::CancelSubscriptionRequest {
        eco_id: String::new(),
        apply_now: body.flag("apply_now"),
        request_id: body.text("request_id"),
    };
    body.finish()?;
    Ok(Json(Subscription::of(app.backend.cancel_subscription(&user, request).await?)?))
}

pub(super) async fn reactivate(
    State(app): State<App>,
    user: User,
    body: Option<Body>,
) -> Result<Json<Subscription>, Error> {
    let mut body = body.unwrap_or_default();
    let request =
        billing::ReactivateSubscriptionRequest { eco_id: String::new(), request_id: body.text("request_id") };
    body.finish()?;
    Ok(Json(Subscription::of(app.backend.reactivate_subscription(&user, request).await?)?))
}

impl Subscription {
    fn of(shown: Option<billing::Subscription>) -> Result<Self, Error> {
        let shown = shown.ok_or_else(|| Error::Internal("the service left out subscription".to_owned()))?;
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
