//! `/dashboard`: where an account stands against its limit, its calls by day and endpoint, its overage and spend cap.

use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use http::StatusCode;
use maud::{Markup, html};
use nexus_core::text::thousands;
use nexus_kit::validate::Violations;
use nexus_proto::{analytics::v1 as analytics, billing::v1 as billing};

use super::{
    chart::{self, Bar},
    form::Posted,
    layout::{Page, Place},
    live,
    part::{self, Column},
    session::Session,
    show,
    standing::Standing,
};
use crate::{App, error::Error, query::Params};

/// Days that the chart may show.
const SPANS: [i32; 4] = [7, 30, 90, 365];

/// The page.
pub async fn page(State(app): State<App>, session: Session, mut params: Params) -> Result<Response, Error> {
    let days = params.days(30);
    let done = params.short_text("done");
    params.finish()?;
    let notice = match done.as_str() {
        "cap-set" => Some("The spend cap is set."),
        "cap-removed" => Some("The spend cap is removed."),
        _ => None,
    };
    render(&app, &session, days, notice, None).await
}

async fn render(
    app: &App,
    session: &Session,
    days: i32,
    notice: Option<&str>,
    wrong: Option<&Violations>,
) -> Result<Response, Error> {
    let user = &session.user;
    let (standing, history, endpoints) = tokio::try_join!(
        Standing::of(app, user, ""),
        app.backend.history(user, "", days),
        app.backend.endpoints(user, busiest("", days)),
    )?;
    let plan = show::plan(standing.usage.plan)?;
    let main = html! {
        div class="head" {
            h1 { "Usage" }
            p class="sub" {
                (plan) " plan, period "
                (show::period(standing.usage.period_start_time.as_ref(), standing.usage.period_end_time.as_ref())?)
            }
        }
        (standing.panel()?)
        (standing.money()?)
        (calls(&history.days, history.days_count, standing.now, Some("/dashboard"))?)
        (self::endpoints(&endpoints, days))
        @if !standing.is_closed() { (cap_form(session, &standing, wrong)?) }
    };
    let live = Some("/dashboard/live");
    let page = Page { session, place: Place::Usage, title: "Usage", notice, live, main };
    Ok(page.into_response())
}

/// Calls by day, drawn and as a table.
pub fn calls(
    known: &[analytics::DailyUsage],
    days_count: i32,
    now: DateTime<Utc>,
    path: Option<&str>,
) -> Result<Markup, Error> {
    let days = every_day(known, days_count, now.date_naive())?;
    let total: i64 = known.iter().map(|day| day.total_count).sum();
    let failed: i64 = known.iter().map(|day| day.failed_count).sum();
    let bars: Vec<_> = days.iter().map(|(date, day)| bar(*date, day)).collect();
    let about =
        format!("{} calls in {} days, {} of them failed", thousands(total), days_count, thousands(failed));
    Ok(html! {
        section aria-labelledby="calls" {
            div class="section-head" {
                h2 id="calls" { "Calls per day" }
                @if let Some(path) = path { (spans(path, days_count)) }
            }
            (chart::bars("Calls per day", &about, &bars, chart::compact)?)
            p class="legend" {
                span class="key first" { "Calls" }
                span class="key second" { "Failed (status 400 and above)" }
                span { (thousands(total)) " calls in all" }
            }
            details {
                summary { "Calls per day as a table" }
                (part::scroll("Calls per day", &table(known)))
            }
        }
    })
}

fn spans(path: &str, shown: i32) -> Markup {
    html! {
        nav class="spans" aria-label="Period that is shown" {
            @for days in SPANS {
                a href={ (path) "?days=" (days) } aria-current=[(days == shown).then_some("true")] { (days) " days" }
            }
        }
    }
}

/// All days of the span, those without usage among them.
fn every_day(
    known: &[analytics::DailyUsage],
    days_count: i32,
    today: NaiveDate,
) -> Result<Vec<(NaiveDate, analytics::DailyUsage)>, Error> {
    let mut by_date = std::collections::HashMap::new();
    for day in known {
        let date: NaiveDate = day
            .date
            .parse()
            .map_err(|_| Error::Internal(format!("the service sent a bad day: {}", day.date)))?;
        by_date.insert(date, day.clone());
    }
    let back = (0..days_count.max(1)).rev().map(|back| today - TimeDelta::days(back.into()));
    Ok(back.map(|date| (date, by_date.remove(&date).unwrap_or_default())).collect())
}

fn bar(date: NaiveDate, day: &analytics::DailyUsage) -> Bar {
    let failed = day.failed_count.clamp(0, day.total_count);
    let label = date.format("%-d %b").to_string();
    let calls = thousands(day.total_count);
    let title = format!("{label}: {calls} calls, {} failed", thousands(failed));
    Bar { label, title, parts: [day.total_count - failed, failed] }
}

fn table(known: &[analytics::DailyUsage]) -> Markup {
    part::table(
        "Calls per day",
        &[
            Column::Text("Day"),
            Column::Number("Calls"),
            Column::Number("Successful"),
            Column::Number("Failed"),
            Column::Number("Mean time"),
        ],
        &html! {
            @for day in known.iter().rev() {
                tr {
                    th scope="row" class="day" { (day.date) }
                    td class="number" { (thousands(day.total_count)) }
                    td class="number" { (thousands(day.successful_count)) }
                    td class="number" { (thousands(day.failed_count)) }
                    td class="number" { (show::millis(day.avg_response_time_ms)) }
                }
            }
            @if known.is_empty() { tr { td colspan="5" { "No calls in these days." } } }
        },
    )
}

/// What asks for an account's busiest endpoints, as many as a page shows.
pub fn busiest(eco_id: &str, days_count: i32) -> analytics::ListEndpointStatsRequest {
    analytics::ListEndpointStatsRequest {
        eco_id: eco_id.to_owned(),
        days_count,
        page_size: 20,
        page_token: String::new(),
    }
}

/// The busiest endpoints.
pub fn endpoints(stats: &analytics::ListEndpointStatsResponse, days: i32) -> Markup {
    let largest = stats.endpoints.iter().map(|e| e.total_count).max().unwrap_or(0);
    let table = part::table(
        "Busiest endpoints",
        &[
            Column::Text("Endpoint"),
            Column::Number("Calls"),
            Column::WideOnly("Share"),
            Column::Number("Successful"),
            Column::Number("Other"),
            Column::Number("p50"),
            Column::Number("p95"),
            Column::Number("p99"),
        ],
        &html! {
            @for endpoint in &stats.endpoints {
                tr {
                    th scope="row" class="code" { span class="method" { (endpoint.method) } " " (endpoint.endpoint) }
                    td class="number" { (thousands(endpoint.total_count)) }
                    td class="wide-only" { (part::bar(endpoint.total_count, largest)) }
                    td class="number" { (show::percent(endpoint.success_rate)) }
                    td class="number" { (thousands(unsuccessful(endpoint))) }
                    td class="number" { (show::millis(endpoint.p50_response_time_ms)) }
                    td class="number" { (show::millis(endpoint.p95_response_time_ms)) }
                    td class="number" { (show::millis(endpoint.p99_response_time_ms)) }
                }
            }
        },
    );
    html! {
        section aria-labelledby="endpoints" {
            h2 id="endpoints" { "Endpoints" }
            @if stats.endpoints.is_empty() {
                (part::empty("No calls yet. They show here as soon as the first is recorded."))
            } @else {
                (part::scroll("Busiest endpoints", &table))
                p class="hint" { "The busiest of the last " (days) " days. Successful: answered 2xx. p95: 95 of 100 calls were answered within this time." }
            }
        }
    }
}

/// Calls that were not answered 2xx.
fn unsuccessful(endpoint: &analytics::EndpointStats) -> i64 {
    ((1.0 - endpoint.success_rate) * endpoint.total_count as f64).round() as i64
}

fn cap_form(session: &Session, standing: &Standing, wrong: Option<&Violations>) -> Result<Markup, Error> {
    let currency = standing.currency();
    let overage = &standing.overage;
    let amount = overage.spend_cap_micros.map(|cap| show::exact(cap, ""));
    let amount = amount.as_deref().map(|text| text.trim_start_matches('$'));
    let code = if currency.is_empty() { "USD" } else { currency };
    let bills = overage.included_count >= 0;
    Ok(html! {
        section aria-labelledby="spend-cap" {
            h2 id="spend-cap" { "Spend cap" }
            p { "What overage may cost in a period. Once it is spent, calls are refused as at a hard limit." }
            @if !bills { p class="hint" { "The plan is unlimited: a cap refuses nothing now." } }
            @if let Some(wrong) = wrong { (part::violations(wrong)) }
            form method="post" action="/dashboard/spend-cap" class="inline" {
                (part::form_fields(&session.csrf))
                div class="field" {
                    label for="spend_cap" { "Cap in " (code) }
                    input id="spend_cap" name="spend_cap" inputmode="decimal" autocomplete="off" value=[amount]
                        aria-invalid[wrong.is_some()];
                }
                button type="submit" class="primary" name="action" value="set" { "Set the cap" }
                @if amount.is_some() { button type="submit" name="action" value="remove" { "Remove it" } }
            }
        }
    })
}

/// Sets or removes the cap.
pub async fn set_spend_cap(
    State(app): State<App>,
    Posted { session, fields }: Posted,
) -> Result<Response, Error> {
    let remove = fields.text("action") == "remove";
    let cap = if remove { Ok(None) } else { fields.amount("spend_cap").map(|cap| Some(cap.0)) };
    let set = async {
        let request = billing::SetSpendCapRequest {
            eco_id: String::new(),
            spend_cap_micros: cap?,
            currency_code: String::new(),
            request_id: fields.text("request_id"),
        };
        app.backend.set_spend_cap(&session.user, request).await
    };
    match set.await {
        Ok(_) if remove => Ok(Redirect::to("/dashboard?done=cap-removed").into_response()),
        Ok(_) => Ok(Redirect::to("/dashboard?done=cap-set").into_response()),
        Err(Error::BadRequest(wrong)) => {
            let mut response = render(&app, &session, 30, None, Some(&wrong)).await?;
            *response.status_mut() = StatusCode::BAD_REQUEST;
            Ok(response)
        }
        Err(error) => Err(error),
    }
}

/// The figures of the page's head, as they change.
pub async fn live(State(app): State<App>, session: Session) -> Result<Response, Error> {
    live::stream(app, session, |app, session| async move {
        let standing = Standing::of(&app, &session.user, "").await?;
        standing.figures()
    })
}
