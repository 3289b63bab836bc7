//! `/admin/accounts/{id}`: one account in depth.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use nexus_core::plan::Plan;
use nexus_kit::{convert::plan_to_proto, validate::Violations};
use nexus_proto::billing::v1 as billing;

use crate::{
    App, convert,
    error::Error,
    pages::{
        charges::ledger,
        form::{AdminPosted, Posted},
        layout::{Page, Place},
        part::{self, Column},
        session::{AdminSession, Session},
        show,
        standing::Standing,
        usage,
    },
    query::Params,
};

const DAYS: i32 = 30;

/// The page.
pub(super) async fn page(
    State(app): State<App>,
    AdminSession(session): AdminSession,
    Path(eco_id): Path<String>,
    mut params: Params,
) -> Result<Response, Error> {
    let page_token = params.page_token();
    let done = params.short_text("done");
    params.finish()?;
    let notice = match done.as_str() {
        "changed" => Some("The plan is changed."),
        "waits" => Some("The change is noted: it comes with the end of the period."),
        "cap" => Some("The spend cap is as you set it."),
        _ => None,
    };
    let (user, id) = (&session.user, eco_id.as_str());
    let account = app.backend.account(user, id).await?;
    let charges = billing::ListChargesRequest { eco_id: eco_id.clone(), page_size: 10, page_token };
    let (standing, subscription, history, endpoints, charges, log) = tokio::try_join!(
        Standing::of(&app, user, id),
        app.backend.subscription(user, id),
        app.backend.history(user, id, DAYS),
        app.backend.endpoints(user, usage::busiest(id, DAYS)),
        app.backend.charges(user, charges),
        app.backend.audit_log(user, id),
    )?;
    let path = format!("/admin/accounts/{eco_id}");
    let main = html! {
        p class="crumb" { a href="/admin/users" { "Accounts" } }
        div class="head" {
            h1 { (account.eco_id) }
            p class="sub" { @if account.email.is_empty() { "Without an email" } @else { (account.email) } }
        }
        (facts(&account, &subscription)?)
        (standing.panel()?)
        (standing.money()?)
        @if account.status() == billing::AccountStatus::Active { (forms(&session, &account, &standing, &path)?) }
        (usage::calls(&history.days, history.days_count, standing.now, None)?)
        (usage::endpoints(&endpoints, DAYS))
        (ledger(&charges, &path)?)
        (audit(&log)?)
    };
    let page =
        Page { session: &session, place: Place::Users, title: &account.eco_id, notice, live: None, main };
    Ok(page.into_response())
}

fn facts(account: &billing::Account, subscription: &billing::Subscription) -> Result<Markup, Error> {
    let time = |field, at| convert::optional_time(field, at);
    let ends = time("cancel_time", subscription.cancel_time.as_ref())?;
    let next = time("next_plan_time", subscription.next_plan_time.as_ref())?;
    let closed = time("close_time", account.close_time.as_ref())?;
    let at_stripe = |id: &str| html! { @if id.is_empty() { "None" } @else { span class="code" { (id) } } };
    Ok(html! {
        dl class="facts" {
            div { dt { "Account" } dd { @match closed { Some(at) => { "Closed " (show::date(at)) } None => "Open" } } }
            div { dt { "Plan" } dd { (show::plan(subscription.plan)?) ", " (show::status(subscription.status()).to_lowercase()) } }
            div { dt { "Next" } dd {
                @if let Some(at) = next { @if subscription.next_plan() == nexus_proto::common::v1::Plan::Unspecified { "The same plan, newer version, " } @else { (show::plan(subscription.next_plan)?) " " } "from " (show::date(at)) }
                @else if let Some(at) = ends { "Ends " (show::date(at)) }
                @else { "Goes on" }
            } }
            div { dt { "Created" } dd { (show::date(convert::required_time("create_time", account.create_time.as_ref())?)) } }
            div { dt { "Customer at Stripe" } dd { (at_stripe(&account.stripe_customer_id)) } }
            div { dt { "Subscription at Stripe" } dd { (at_stripe(&account.stripe_subscription_id)) } }
        }
    })
}

fn forms(
    session: &Session,
    account: &billing::Account,
    standing: &Standing,
    path: &str,
) -> Result<Markup, Error> {
    let cap = standing.overage.spend_cap_micros.map(|cap| show::exact(cap, ""));
    let cap = cap.as_deref().map(|text| text.trim_start_matches('$'));
    let plan = convert::plan(account.plan)?;
    Ok(html! {
        section class="panel columns" aria-label="Change the account" {
            form method="post" action={ (path) "/plan" } class="stack" {
                h2 { "Plan" }
                (part::form_fields(&session.csrf))
                div class="field" {
                    label for="plan" { "The account is on" }
                    select id="plan" name="plan" {
                        @for its in [Plan::Free, Plan::Pro, Plan::Enterprise] {
                            option value=(its.as_str()) selected[its == plan] { (show::plan(plan_to_proto(its).into())?) }
                        }
                    }
                }
                label class="check" {
                    input type="checkbox" name="apply_now" value="1";
                    span { "At once, also where it is a smaller one" }
                }
                button type="submit" { "Change the plan" }
            }
            form method="post" action={ (path) "/spend-cap" } class="stack" {
                h2 { "Spend cap" }
                (part::form_fields(&session.csrf))
                div class="field" {
                    label for="spend_cap" { "Cap in " (account.currency_code) }
                    input id="spend_cap" name="spend_cap" inputmode="decimal" autocomplete="off" value=[cap]
                        aria-describedby="cap-hint";
                    p class="hint" id="cap-hint" { "Empty: overage may cost any amount." }
                }
                button type="submit" { "Set the cap" }
            }
        }
    })
}

fn audit(entries: &[billing::AuditEntry]) -> Result<Markup, Error> {
    let table = part::table(
        "Changes of the account, newest first",
        &[Column::Text("When"), Column::Text("Who"), Column::Text("What"), Column::Text("Change")],
        &html! {
            @for entry in entries {
                tr {
                    th scope="row" { (show::moment(convert::required_time("audit_time", entry.audit_time.as_ref())?)) }
                    td { (entry.actor) }
                    td { (entry.subject.replace('_', " ")) " " (entry.action) }
                    td class="code json" { @if entry.action == "deleted" { (entry.before_json) } @else { (entry.after_json) } }
                }
            }
        },
    );
    Ok(html! {
        section aria-labelledby="audit" {
            h2 id="audit" { "Who changed what" }
            @if entries.is_empty() { (part::empty("Nothing was changed.")) }
            @else { (part::scroll("Who changed what", &table)) }
        }
    })
}

/// Moves the account to another plan.
pub(super) async fn change_plan(
    State(app): State<App>,
    Path(eco_id): Path<String>,
    AdminPosted(Posted { session, fields }): AdminPosted,
) -> Result<Response, Error> {
    let plan: Plan = fields
        .text("plan")
        .parse()
        .map_err(|_| Violations::one("plan", "must be free, pro or enterprise"))?;
    let plan = plan_to_proto(plan);
    let request = billing::ChangePlanRequest {
        eco_id: eco_id.clone(),
        plan: plan.into(),
        apply_now: fields.flag("apply_now"),
        request_id: fields.text("request_id"),
    };
    let changed = app.backend.change_plan(&session.user, request).await?;
    let in_force = changed.account.is_some_and(|account| account.plan() == plan);
    Ok(back(&eco_id, if in_force { "changed" } else { "waits" }))
}

/// Sets or removes the account's cap.
pub(super) async fn set_spend_cap(
    State(app): State<App>,
    Path(eco_id): Path<String>,
    AdminPosted(Posted { session, fields }): AdminPosted,
) -> Result<Response, Error> {
    let none = fields.trimmed("spend_cap").is_empty();
    let cap = if none { None } else { Some(fields.amount("spend_cap")?.0) };
    let request = billing::SetSpendCapRequest {
        eco_id: eco_id.clone(),
        spend_cap_micros: cap,
        currency_code: String::new(),
        request_id: fields.text("request_id"),
    };
    app.backend.set_spend_cap(&session.user, request).await?;
    Ok(back(&eco_id, "cap"))
}

fn back(eco_id: &str, done: &str) -> Response {
    Redirect::to(&format!("/admin/accounts/{eco_id}?done={done}")).into_response()
}
