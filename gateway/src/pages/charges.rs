//! An account's charges, and why each is what it is.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use nexus_core::text::thousands;
use nexus_proto::billing::v1 as billing;

use super::{
    layout::{Page, Place},
    part::{self, Column},
    session::Session,
    show,
};
use crate::{App, convert, error::Error, query::Named};

/// Charges, newest first.
pub fn ledger(listed: &billing::ListChargesResponse, path: &str) -> Result<Markup, Error> {
    let table = part::table(
        "Charges, newest first",
        &[
            Column::Text("Date"),
            Column::Text("Period"),
            Column::Number("Overage calls"),
            Column::Number("Amount"),
            Column::Text("State"),
            Column::Unseen("Explanation"),
        ],
        &html! {
            @for charge in &listed.charges {
                tr {
                    th scope="row" { (show::date(convert::required_time("create_time", charge.create_time.as_ref())?)) }
                    td { (show::period(charge.period_start_time.as_ref(), charge.period_end_time.as_ref())?) }
                    td class="number" { (thousands(charge.from_count)) " – " (thousands(charge.to_count)) }
                    td class="number" { (show::money(charge.amount_micros, &charge.currency_code)?) }
                    td { (charge_state(charge)) }
                    td { a href={ "/dashboard/billing/charges/" (charge.charge_id) } { "Why" span class="unseen" { " " (show::money(charge.amount_micros, &charge.currency_code)?) } } }
                }
            }
        },
    );
    Ok(html! {
        section aria-labelledby="charges" {
            h2 id="charges" { "Overage charges" }
            @if listed.charges.is_empty() { (part::empty("Nothing was charged for overage.")) }
            @else {
                (part::page_of("Overage charges", &table, path, &listed.next_page_token, "Older charges"))
            }
        }
    })
}

fn charge_state(charge: &billing::Charge) -> Markup {
    match charge.status() {
        billing::ChargeStatus::Succeeded => part::badge("At Stripe", "good"),
        billing::ChargeStatus::Pending => part::badge("On its way", "plain"),
        billing::ChargeStatus::Failed => part::badge("Refused", "bad"),
        billing::ChargeStatus::Superseded => part::badge("Replaced", "plain"),
        billing::ChargeStatus::Unspecified => part::badge("Unknown", "plain"),
    }
}

/// Why a charge is what it is.
pub async fn one(
    State(app): State<App>,
    session: Session,
    Named(charge_id): Named,
) -> Result<Response, Error> {
    let main = match app.backend.explain_charge(&session.user, &charge_id).await {
        Ok(explained) => explanation(&explained)?,
        Err(Error::ExplanationNotKept) => html! {
            p class="crumb" { a href="/dashboard/billing" { "Billing" } }
            h1 { "Charge" }
            p { "No explanation was kept with this charge." }
        },
        // What is no id of a charge is one that does not exist.
        Err(Error::BadRequest(_)) => return Err(Error::NotFound("Charge not found")),
        Err(error) => return Err(error),
    };
    let page = Page {
        session: &session,
        place: Place::Billing,
        title: "Why this charge",
        notice: None,
        live: None,
        main,
    };
    Ok(page.into_response())
}

fn explanation(explained: &billing::ExplainChargeResponse) -> Result<Markup, Error> {
    let charge =
        explained.charge.as_ref().ok_or_else(|| Error::Internal("the service left out charge".to_owned()))?;
    let currency = &explained.currency_code;
    Ok(html! {
        p class="crumb" { a href="/dashboard/billing" { "Billing" } }
        div class="head" {
            h1 { "Why " (show::money(charge.amount_micros, currency)?) }
            p class="sub" { "Charged " (show::date(convert::required_time("create_time", charge.create_time.as_ref())?)) " for the period " (show::period(charge.period_start_time.as_ref(), charge.period_end_time.as_ref())?) }
        }
        p class="lead" { (explained.explanation) }
        @if !explained.segments.is_empty() {
            section aria-labelledby="segments" {
                h2 id="segments" { "What was counted" }
                (part::scroll("What was counted", &segments(explained)?))
            }
        }
        section aria-labelledby="sum" {
            h2 id="sum" { "The sum" }
            dl class="facts sum" {
                div { dt { "Due to date" } dd { (show::money(explained.due_micros, currency)?) } }
                div { dt { "Charged before" } dd { (show::money(explained.billed_before_micros, currency)?) } }
                div { dt { "This charge" } dd { strong { (show::money(charge.amount_micros, currency)?) } } }
            }
            p class="hint" { @if explained.settled { "Rounded for good, half up." } @else { "Rounded down: the period was open, what is less than a cent is carried." } }
        }
        dl class="facts" {
            div { dt { "State" } dd { (charge_state(charge)) @if !charge.failure_reason.is_empty() { " " (charge.failure_reason) } } }
            div { dt { "Invoice item at Stripe" } dd class="code" { @if charge.stripe_invoice_item_id.is_empty() { "Not known yet" } @else { (charge.stripe_invoice_item_id) } } }
            div { dt { "Charge" } dd class="code" { (charge.charge_id) } }
        }
    })
}

fn segments(explained: &billing::ExplainChargeResponse) -> Result<Markup, Error> {
    Ok(part::table(
        "Stretches of the period, each under one plan",
        &[
            Column::Text("Plan"),
            Column::Number("Calls counted"),
            Column::Number("Included"),
            Column::Number("Overage calls"),
            Column::Text("Price"),
            Column::Number("Cost"),
        ],
        &html! {
            @for segment in &explained.segments {
                tr {
                    th scope="row" { (show::plan(segment.plan)?) " " span class="dim" { "version " (segment.plan_version) } }
                    td class="number" { (thousands(segment.start_count)) " – " (thousands(segment.end_count)) }
                    td class="number" { (show::limit(segment.included_count)) }
                    td class="number" { (thousands(segment.overage_count)) }
                    td { @if segment.price_micros == 0 { "–" } @else { (show::price(segment.price_micros, segment.price_per_count, &segment.currency_code)?) } }
                    td class="number" { (show::exact(segment.overage_micros, &segment.currency_code)) }
                }
            }
        },
    ))
}
