//! How a user comes to another plan: which way there is, what it means, and that it is gone.

use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use nexus_core::{plan::Plan, text::thousands};
use nexus_kit::{convert::plan_to_proto, validate::Violations};
use nexus_proto::{billing::v1 as billing, common::v1 as common};

use super::{
    form::Posted,
    layout::{Page, Place},
    part,
    session::Session,
    show,
};
use crate::{App, convert, error::Error, query::Params};

/// Which way to a plan there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is the plan.
    Current,
    /// It waits.
    Waiting,
    /// A checkout at Stripe.
    Checkout,
    /// A change.
    Change,
    /// The subscription ends.
    End,
}

fn way(subscription: &billing::Subscription, plan: common::Plan) -> Way {
    let paid_for = !subscription.stripe_subscription_id.is_empty();
    match plan {
        plan if plan == subscription.plan() => Way::Current,
        plan if plan == subscription.next_plan() => Way::Waiting,
        common::Plan::Free if paid_for && subscription.cancel_time.is_some() => Way::Waiting,
        common::Plan::Free if paid_for => Way::End,
        common::Plan::Free => Way::Change,
        _ if paid_for => Way::Change,
        _ => Way::Checkout,
    }
}

/// The plans, each with the way to it.
pub fn list(subscription: &billing::Subscription, plans: &[billing::PlanVersion]) -> Result<Markup, Error> {
    Ok(html! {
        section aria-labelledby="plans" {
            h2 id="plans" { "Plans" }
            ul class="plans" {
                @for plan in plans {
                    li { (offer(subscription, plan)?) }
                }
            }
        }
    })
}

fn offer(subscription: &billing::Subscription, plan: &billing::PlanVersion) -> Result<Markup, Error> {
    let name = show::plan(plan.plan)?;
    let word = convert::plan_word(plan.plan)?;
    let price = plan.prices.iter().find(|price| price.currency_code == subscription.currency_code);
    let monthly = price.map(|p| show::money(p.monthly_micros, &p.currency_code)).transpose()?;
    let beyond = match price {
        _ if plan.included_count < 0 => "Nothing beyond it: it has no limit".to_owned(),
        _ if plan.hard_limit => "Calls beyond them are refused".to_owned(),
        Some(p) if p.overage_micros > 0 => {
            format!("Then {}", show::price(p.overage_micros, p.overage_per_count, &p.currency_code)?)
        }
        _ => "Calls beyond them are not billed".to_owned(),
    };
    let way = way(subscription, plan.plan());
    let label = match way {
        Way::Checkout | Way::Change => format!("Change to {name}"),
        Way::End => "End the subscription".to_owned(),
        Way::Current | Way::Waiting => String::new(),
    };
    Ok(html! {
        h3 { (name) }
        p class="price" { (monthly.as_deref().unwrap_or("–")) span class="of" { " a month" } }
        p { @if plan.included_count < 0 { "Calls without a limit" } @else { (thousands(plan.included_count)) " calls a month" } br; span class="dim" { (beyond) } }
        @match way {
            Way::Current => p { (part::badge("Your plan", "good")) },
            Way::Waiting => p { (part::badge("Comes with the period's end", "plain")) },
            _ if monthly.is_none() => p class="dim" { "Has no price in your currency." },
            _ => p { a class="button" href={ "/dashboard/billing/plan?plan=" (word) } { (label) } },
        }
    })
}

/// Says what a change of plan means, before it is made.
pub async fn confirm(
    State(app): State<App>,
    session: Session,
    mut params: Params,
) -> Result<Response, Error> {
    let plan = params.word::<Plan>("plan", "free, pro, enterprise");
    params.finish()?;
    let plan = plan.ok_or_else(|| Violations::one("plan", "must be free, pro or enterprise"))?;
    let subscription = app.backend.subscription(&session.user, "").await?;
    let proto = plan_to_proto(plan);
    let (name, current) = (show::plan(proto.into())?, show::plan(subscription.plan)?);
    let end = convert::required_time("period_end", subscription.period_end_time.as_ref())?;
    let smaller = proto < subscription.plan();
    let (text, action, label) = match way(&subscription, proto) {
        Way::Current | Way::Waiting => return Ok(Redirect::to("/dashboard/billing").into_response()),
        Way::Checkout => (
            "You pay for this plan at Stripe. The next page leads there; the plan changes once you have paid.",
            "checkout",
            "Go on to the checkout",
        ),
        Way::End => (
            "The subscription at Stripe ends with its period. Until then the plan stays as it is, and you can take it up again.",
            "end",
            "End the subscription",
        ),
        Way::Change if smaller => (
            "A smaller plan comes with the end of the period. Until then you can keep the one you have.",
            "change",
            "Change the plan",
        ),
        Way::Change => (
            "A larger plan is in force at once, and Stripe charges its part of the period.",
            "change",
            "Change the plan",
        ),
    };
    let main = html! {
        p class="crumb" { a href="/dashboard/billing" { "Billing" } }
        div class="head" { h1 { "From " (current) " to " (name) } }
        p { (text) @if smaller { " The period ends on " (show::date(end)) "." } }
        form method="post" action="/dashboard/billing/plan" class="inline" {
            (part::form_fields(&session.csrf))
            (part::hidden("plan", plan.as_str()))
            button type="submit" class="primary" name="action" value=(action) { (label) }
            a class="button" href="/dashboard/billing" { "Leave it as it is" }
        }
    };
    let page = Page {
        session: &session,
        place: Place::Billing,
        title: "Change the plan",
        notice: None,
        live: None,
        main,
    };
    Ok(page.into_response())
}

/// Changes the plan, by the way that there is.
pub async fn change(State(app): State<App>, Posted { session, fields }: Posted) -> Result<Response, Error> {
    let user = &session.user;
    let request_id = fields.text("request_id");
    let eco_id = String::new();
    let plan = || {
        let plan: Result<Plan, _> = fields.text("plan").parse();
        plan.map(plan_to_proto).map_err(|_| Violations::one("plan", "must be free, pro or enterprise"))
    };
    let done = match fields.text("action").as_str() {
        "checkout" => {
            let request = billing::CreateCheckoutSessionRequest { eco_id, plan: plan()?.into(), request_id };
            let opened = app.backend.create_checkout_session(user, request).await?;
            return Ok(to_checkout(&session, &opened.url));
        }
        "end" => {
            let request = billing::CancelSubscriptionRequest { eco_id, apply_now: false, request_id };
            app.backend.cancel_subscription(user, request).await?;
            "waits"
        }
        "change" => {
            let plan = plan()?;
            let request =
                billing::ChangePlanRequest { eco_id, plan: plan.into(), apply_now: false, request_id };
            let changed = app.backend.change_plan(user, request).await?;
            if changed.account.is_some_and(|account| account.plan() == plan) { "changed" } else { "waits" }
        }
        "keep" => {
            keep(&app, &session, request_id).await?;
            "kept"
        }
        _ => return Err(Violations::one("action", "must be one of checkout, end, change, keep").into()),
    };
    Ok(Redirect::to(&format!("/dashboard/billing?done={done}")).into_response())
}

/// What waits does not come.
async fn keep(app: &App, session: &Session, request_id: String) -> Result<(), Error> {
    let subscription = app.backend.subscription(&session.user, "").await?;
    let eco_id = String::new();
    if subscription.stripe_subscription_id.is_empty() {
        let plan = subscription.plan;
        let request = billing::ChangePlanRequest { eco_id, plan, apply_now: false, request_id };
        app.backend.change_plan(&session.user, request).await?;
    } else {
        let request = billing::ReactivateSubscriptionRequest { eco_id, request_id };
        app.backend.reactivate_subscription(&session.user, request).await?;
    }
    Ok(())
}

/// A link: the answer to a form may lead to no other host by itself.
fn to_checkout(session: &Session, url: &str) -> Response {
    let main = html! {
        div class="head" { h1 { "Your checkout is ready" } }
        p { "You pay at Stripe, and come back here." }
        p { a class="button primary" href=(url) rel="noreferrer" { "Go to Stripe" } }
        p { a href="/dashboard/billing" { "Back without paying" } }
    };
    Page { session, place: Place::Billing, title: "Checkout", notice: None, live: None, main }.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_way_to_each_plan() {
        let of = |plan: common::Plan, stripe: &str, next: common::Plan| billing::Subscription {
            plan: plan.into(),
            next_plan: next.into(),
            stripe_subscription_id: stripe.to_owned(),
            ..Default::default()
        };
        use common::Plan as P;
        let ways = |subscription: &billing::Subscription| {
            [P::Free, P::Pro, P::Enterprise].map(|plan| way(subscription, plan))
        };
        assert_eq!(ways(&of(P::Free, "", P::Unspecified)), [Way::Current, Way::Checkout, Way::Checkout]);
        assert_eq!(ways(&of(P::Pro, "", P::Unspecified)), [Way::Change, Way::Current, Way::Checkout]);
        assert_eq!(ways(&of(P::Pro, "", P::Free)), [Way::Waiting, Way::Current, Way::Checkout]);
        assert_eq!(ways(&of(P::Pro, "sub_1", P::Unspecified)), [Way::End, Way::Current, Way::Change]);
        let ends = billing::Subscription {
            cancel_time: Some(Default::default()),
            ..of(P::Pro, "sub_1", P::Unspecified)
        };
        assert_eq!(ways(&ends), [Way::Waiting, Way::Current, Way::Change]);
    }
}
