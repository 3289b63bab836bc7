//! `/dashboard/billing`: an account's plan and what it is charged.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use nexus_core::text::thousands;
use nexus_proto::{billing::v1 as billing, common::v1 as common};

use super::{
    charges::ledger,
    layout::{Page, Place},
    part, plan,
    session::Session,
    show,
};
use crate::{App, convert, error::Error, query::Params};

/// The page.
pub async fn page(State(app): State<App>, session: Session, mut params: Params) -> Result<Response, Error> {
    let page_token = params.page_token();
    let (done, checkout) = (params.short_text("done"), params.short_text("checkout"));
    params.finish()?;
    let notice = match (done.as_str(), checkout.as_str()) {
        ("changed", _) => Some("The plan is changed."),
        ("waits", _) => Some("The change is noted: it comes with the end of the period."),
        ("kept", _) => Some("The plan goes on."),
        (_, "success") => {
            Some("Thank you. The plan changes as soon as Stripe tells of the payment, which takes a moment.")
        }
        (_, "cancelled") => Some("The checkout was left. Nothing has changed."),
        _ => None,
    };
    let user = &session.user;
    let charges = billing::ListChargesRequest { eco_id: String::new(), page_size: 20, page_token };
    let (subscription, plans, overage, charges) = tokio::try_join!(
        app.backend.subscription(user, ""),
        app.backend.plans(user),
        app.backend.overage(user, ""),
        app.backend.charges(user, charges),
    )?;
    let main = html! {
        div class="head" {
            h1 { "Billing" }
            p class="sub" { "Period " (show::period(subscription.period_start_time.as_ref(), subscription.period_end_time.as_ref())?) }
        }
        (standing(&session, &subscription)?)
        (money(&overage)?)
        (plan::list(&subscription, &plans)?)
        (ledger(&charges, "/dashboard/billing")?)
    };
    let page = Page { session: &session, place: Place::Billing, title: "Billing", notice, live: None, main };
    Ok(page.into_response())
}

/// The plan, and what waits.
fn standing(session: &Session, subscription: &billing::Subscription) -> Result<Markup, Error> {
    let price = match subscription.monthly_micros {
        Some(micros) => format!("{} a month", show::money(micros, &subscription.currency_code)?),
        None => "No price in this currency".to_owned(),
    };
    let next = next(subscription)?;
    let ends = convert::optional_time("cancel_time", subscription.cancel_time.as_ref())?;
    let good = matches!(
        subscription.status(),
        common::SubscriptionStatus::Active | common::SubscriptionStatus::Trialing
    );
    Ok(html! {
        section class="panel" aria-labelledby="plan" {
            h2 id="plan" { "Plan" }
            p class="big" { (show::plan(subscription.plan)?) span class="of" { " " (price) } }
            p class="under" {
                (part::badge(show::status(subscription.status()), if good { "good" } else { "bad" }))
                span { @if subscription.stripe_subscription_id.is_empty() { "Without a subscription at Stripe" } @else { "Paid by a subscription at Stripe" } }
            }
            @if next.is_some() || ends.is_some() {
                div class="notice" {
                    p {
                        @if let Some((plan, at)) = &next { "From " (show::date(*at)) " on the plan is " strong { (plan) } "." }
                        @else if let Some(at) = ends { "The subscription ends on " (show::date(at)) "; the plan is Free then." }
                    }
                    form method="post" action="/dashboard/billing/plan" {
                        (part::form_fields(&session.csrf))
                        button type="submit" name="action" value="keep" { "Keep " (show::plan(subscription.plan)?) }
                    }
                }
            }
        }
    })
}

fn next(
    subscription: &billing::Subscription,
) -> Result<Option<(&'static str, chrono::DateTime<chrono::Utc>)>, Error> {
    if subscription.next_plan() == common::Plan::Unspecified {
        return Ok(None);
    }
    let at = convert::optional_time("next_plan_time", subscription.next_plan_time.as_ref())?;
    at.map(|at| Ok((show::plan(subscription.next_plan)?, at))).transpose()
}

/// Overage as it is known for the next invoice.
fn money(overage: &billing::GetOverageResponse) -> Result<Markup, Error> {
    let currency = &overage.currency_code;
    let to_come = (overage.due_micros - overage.billed_micros).max(0);
    let state = match overage.billed_micros {
        _ if overage.overage_count == 0 && overage.billed_micros == 0 => "Nothing to charge in this period",
        0 => "Not charged yet",
        _ if overage.invoiced => "All of it is charged so far",
        _ => "Partly charged",
    };
    Ok(html! {
        dl class="figures" {
            (part::figure("Overage so far", "overage", &show::money(overage.overage_micros, currency)?, &html! { (thousands(overage.overage_count)) " calls beyond the included ones" }))
            (part::figure("Charged at Stripe", "charged", &show::money(overage.billed_micros, currency)?, &html! { (state) }))
            (part::figure("Still to come", "to-come", &show::money(to_come, currency)?, &html! { "with the next run, on the next invoice" }))
        }
    })
}
