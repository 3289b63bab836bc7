//! `/admin/billing`: the runs of billing, what the next would charge, and whether the records agree.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use nexus_core::text::thousands;
use nexus_proto::billing::v1::{self as billing, OverageRunStatus};

use crate::{
    App, convert,
    error::Error,
    pages::{
        form::{AdminPosted, Posted},
        layout::{Page, Place},
        live::{self, Figures},
        part::{self, Column},
        session::{AdminSession, Session},
        show,
    },
    query::Params,
};

const FAILED: &str = "Accounts that could not be charged";

/// The page.
pub(super) async fn page(
    State(app): State<App>,
    AdminSession(session): AdminSession,
    mut params: Params,
) -> Result<Response, Error> {
    let page_token = params.page_token();
    params.finish()?;
    render(&app, &session, &page_token, &html! {}).await
}

async fn render(app: &App, session: &Session, page_token: &str, found: &Markup) -> Result<Response, Error> {
    let listed = app.backend.runs(&session.user, page_token).await?;
    let main = html! {
        div class="head" {
            h1 { "Billing runs" }
            p class="sub" { "A run charges each account the overage that it owes by then. The scheduler starts it." }
        }
        (found)
        (checks(session))
        section aria-labelledby="runs" {
            h2 id="runs" { "Runs" }
            @if listed.runs.is_empty() { (part::empty("No run was made yet.")) }
            @else {
                (part::page_of("Runs", &table(&listed.runs)?, "/admin/billing", &listed.next_page_token, "Older runs"))
            }
        }
    };
    let page = Page { session, place: Place::Runs, title: "Billing runs", notice: None, live: None, main };
    Ok(page.into_response())
}

fn checks(session: &Session) -> Markup {
    html! {
        section class="panel columns" aria-label="Checks" {
            form method="post" action="/admin/billing/dry-run" class="stack" {
                h2 { "Dry run" }
                p { "Lists what a run would charge now, and why. Nothing is charged." }
                (part::form_fields(&session.csrf))
                button type="submit" class="primary" { "Make a dry run" }
            }
            form method="post" action="/admin/billing/compare" class="stack" {
                h2 { "Reconcile" }
                p { "Compares usage, ledger and Stripe, and names each difference. Nothing is repaired." }
                (part::form_fields(&session.csrf))
                button type="submit" { "Compare the records" }
            }
        }
    }
}

fn table(runs: &[billing::OverageRun]) -> Result<Markup, Error> {
    Ok(part::table(
        "Runs, newest first",
        &[
            Column::Text("Begun"),
            Column::Text("State"),
            Column::Number("Accounts"),
            Column::Number("Charged"),
            Column::Number("Failed"),
            Column::Number("Sum"),
            Column::Number("Took"),
        ],
        &html! {
            @for run in runs {
                tr {
                    th scope="row" { a href={ "/admin/billing/runs/" (run.run_id) } { (show::moment(convert::required_time("start_time", run.start_time.as_ref())?)) } }
                    td { (state(run.status())) }
                    td class="number" { (thousands(run.processed_count)) }
                    td class="number" { (thousands(run.charged_count)) }
                    td class="number" { (thousands(run.failed_count)) }
                    td class="number" { (show::money(run.total_micros, &run.currency_code)?) }
                    td class="number" { (show::duration(run.duration_ms)) }
                }
            }
        },
    ))
}

fn state(status: OverageRunStatus) -> Markup {
    let (word, tone) = words(status);
    part::badge(word, tone)
}

fn words(status: OverageRunStatus) -> (&'static str, &'static str) {
    match status {
        OverageRunStatus::Running => ("At work", "plain"),
        OverageRunStatus::Finished => ("Finished", "good"),
        OverageRunStatus::Failed => ("Cut short", "bad"),
        OverageRunStatus::Silent => ("Silent", "bad"),
        OverageRunStatus::Unspecified => ("Unknown", "plain"),
    }
}

/// One run, with the accounts that it could not charge.
pub(super) async fn run(
    State(app): State<App>,
    AdminSession(session): AdminSession,
    Path(run_id): Path<String>,
    mut params: Params,
) -> Result<Response, Error> {
    let page_token = params.page_token();
    params.finish()?;
    let run = app.backend.run(&session.user, &run_id).await?;
    let errors = app.backend.run_errors(&session.user, &run_id, &page_token).await?;
    let path = format!("/admin/billing/runs/{}", run.run_id);
    let live = format!("{path}/live");
    let at_work = run.status() == OverageRunStatus::Running;
    let (percent, progress) = progress(&run);
    let main = html! {
        p class="crumb" { a href="/admin/billing" { "Billing runs" } }
        div class="head" {
            h1 { "Run of " (show::moment(convert::required_time("start_time", run.start_time.as_ref())?)) }
            p class="sub id" { (run.run_id) }
        }
        section class="panel" aria-labelledby="progress" {
            h2 id="progress" { "Progress" }
            (part::meter("Accounts done with", percent, &progress, false))
            p class="under" { span data-figure="progress" { (progress) } span data-figure="state" { (words(run.status()).0) } }
        }
        dl class="figures" {
            @for (key, name, text) in figures(&run)? { (part::figure(name, key, &text, &html! {})) }
        }
        section aria-labelledby="errors" {
            h2 id="errors" { (FAILED) }
            @if errors.errors.is_empty() { (part::empty("None.")) }
            @else {
                (part::page_of(FAILED, &error_table(&errors.errors), &path, &errors.next_page_token, "More"))
            }
        }
    };
    let live = at_work.then_some(live.as_str());
    let page = Page { session: &session, place: Place::Runs, title: "Billing run", notice: None, live, main };
    Ok(page.into_response())
}

fn progress(run: &billing::OverageRun) -> (f64, String) {
    let (done, all) = (run.processed_count, run.accounts_count.max(run.processed_count));
    let percent = if all == 0 { 100.0 } else { f64::from(done) / f64::from(all) * 100.0 };
    (percent, format!("{} of {} accounts", thousands(done), thousands(all)))
}

fn figures(run: &billing::OverageRun) -> Result<[(&'static str, &'static str, String); 4], Error> {
    Ok([
        ("charged", "Accounts charged", thousands(run.charged_count)),
        ("failed", "Accounts that failed", thousands(run.failed_count)),
        ("sum", "Sum charged", show::money(run.total_micros, &run.currency_code)?),
        ("took", "Took", show::duration(run.duration_ms)),
    ])
}

fn error_table(errors: &[billing::OverageError]) -> Markup {
    part::table(
        FAILED,
        &[Column::Text("Account"), Column::Text("Reason"), Column::Text("In words")],
        &html! {
            @for error in errors {
                tr {
                    th scope="row" { a href={ "/admin/accounts/" (error.eco_id) } { (error.eco_id) } }
                    td class="code" { (error.reason) }
                    td { (error.message) }
                }
            }
        },
    )
}

/// A run's figures, as they change.
pub(super) async fn live(
    State(app): State<App>,
    AdminSession(session): AdminSession,
    Path(run_id): Path<String>,
) -> Result<Response, Error> {
    live::stream(app, session, move |app, session| {
        let run_id = run_id.clone();
        async move {
            let run = app.backend.run(&session.user, &run_id).await?;
            let mut texts = Figures::new();
            let (percent, text) = progress(&run);
            texts.set("progress", text.clone());
            texts.set("state", words(run.status()).0.to_owned());
            texts.set_meter(percent, text);
            for (key, _, text) in figures(&run)? {
                texts.set(key, text);
            }
            Ok(texts)
        }
    })
}

/// What a run would charge.
pub(super) async fn dry_run(
    State(app): State<App>,
    AdminPosted(Posted { session, .. }): AdminPosted,
) -> Result<Response, Error> {
    let planned = app.backend.dry_run(&session.user).await?;
    let found = html! {
        section class="panel" aria-labelledby="planned" {
            h2 id="planned" { "What a run would charge now" }
            @if planned.planned_charges.is_empty() && planned.errors.is_empty() {
                (part::empty("Nothing: no account owes a difference."))
            } @else {
                p class="lead" {
                    (show::money(planned.total_micros, &planned.currency_code)?) " from " (thousands(planned.charged_count)) " accounts. Nothing was charged."
                }
                @if !planned.planned_charges.is_empty() { (part::scroll("Charges that would be made", &planned_table(&planned.planned_charges)?)) }
                @if i64::from(planned.planned_charges_count) > planned.planned_charges.len() as i64 {
                    p class="hint" { "The first " (thousands(planned.planned_charges.len() as i64)) " of " (thousands(planned.planned_charges_count)) " charges." }
                }
                @if !planned.errors.is_empty() {
                    h3 { (FAILED) }
                    (part::scroll(FAILED, &error_table(&planned.errors)))
                }
            }
        }
    };
    render(&app, &session, "", &found).await
}

fn planned_table(charges: &[billing::PlannedCharge]) -> Result<Markup, Error> {
    Ok(part::table(
        "Charges that would be made",
        &[
            Column::Text("Account"),
            Column::Number("Calls"),
            Column::Number("Included"),
            Column::Number("Overage calls"),
            Column::Text("Price"),
            Column::Number("Due"),
            Column::Number("Charged before"),
            Column::Number("Charge"),
        ],
        &html! {
            @for charge in charges {
                @let money = |micros| show::money(micros, &charge.currency_code);
                tr {
                    th scope="row" { a href={ "/admin/accounts/" (charge.eco_id) } { (charge.eco_id) } }
                    td class="number" { (thousands(charge.api_calls_count)) }
                    td class="number" { (show::limit(charge.included_count)) }
                    td class="number" { (thousands(charge.overage_count)) }
                    td { (show::price(charge.price_micros, charge.price_per_count, &charge.currency_code)?) }
                    td class="number" { (money(charge.due_micros)?) }
                    td class="number" { (money(charge.billed_micros)?) }
                    td class="number" { strong { (money(charge.charge_micros)?) } }
                }
            }
        },
    ))
}

/// Whether the records agree.
pub(super) async fn compare(
    State(app): State<App>,
    AdminPosted(Posted { session, fields }): AdminPosted,
) -> Result<Response, Error> {
    let request_id = fields.text("request_id");
    let compared = app.backend.compare(&session.user, &request_id).await?;
    let found = html! {
        section class="panel" aria-labelledby="compared" {
            h2 id="compared" { "Whether the records agree" }
            (verdict(&compared))
            @if compared.running { (follow(&session, &request_id)) }
            @if !compared.differences.is_empty() { (part::scroll("Differences", &differences(&compared.differences)?)) }
        }
    };
    render(&app, &session, "", &found).await
}

fn verdict(compared: &billing::ReconcileResponse) -> Markup {
    let looked_at = format!(
        "{} accounts, {} periods and {} items at Stripe",
        thousands(compared.accounts_count),
        thousands(compared.periods_count),
        thousands(compared.items_count)
    );
    html! {
        @if compared.already_running { p { "Another comparison is at work. Try again when it has ended." } }
        @else if compared.running { p { "It goes on: " (looked_at) " so far, " (thousands(compared.differences_count)) " differences." } }
        @else if compared.differences_count == 0 { p { (part::badge("They agree", "good")) " " (looked_at) " were compared in " (show::duration(compared.duration_ms)) "." } }
        @else { p { (part::badge("They differ", "bad")) " " (thousands(compared.differences_count)) " differences in " (looked_at) "." } }
    }
}

/// The same request again says how far it is.
fn follow(session: &Session, request_id: &str) -> Markup {
    html! {
        form method="post" action="/admin/billing/compare" {
            (part::hidden("csrf", &session.csrf))
            (part::hidden("request_id", request_id))
            button type="submit" { "Look again" }
        }
    }
}

fn differences(differences: &[billing::Difference]) -> Result<Markup, Error> {
    Ok(part::table(
        "Differences",
        &[Column::Text("Account"), Column::Text("Kind"), Column::Text("In words"), Column::Number("Amount")],
        &html! {
            @for difference in differences {
                tr {
                    th scope="row" { @if difference.eco_id.is_empty() { "–" } @else { a href={ "/admin/accounts/" (difference.eco_id) } { (difference.eco_id) } } }
                    td class="code" { (difference.kind) }
                    td { (difference.message) }
                    td class="number" { @if difference.amount_micros == 0 { "–" } @else { (show::money(difference.amount_micros, &difference.currency_code)?) } }
                }
            }
        },
    ))
}
