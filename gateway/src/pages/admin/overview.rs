//! `/admin`: revenue, accounts and calls at a glance.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use nexus_core::{money::Currency, text::thousands};
use nexus_proto::analytics::v1 as analytics;

use crate::{
    App, convert,
    error::Error,
    pages::{
        chart::{self, Bar},
        layout::{Page, Place},
        live::{self, Figures},
        part::{self, Column},
        session::AdminSession,
        show, usage,
    },
    query::Params,
};

const MONTHS: i32 = 12;

/// The page.
pub(super) async fn page(
    State(app): State<App>,
    AdminSession(session): AdminSession,
    mut params: Params,
) -> Result<Response, Error> {
    let days = params.days(30);
    let currency =
        params.choice::<Currency>("currency", "the currencies of ISO 4217").unwrap_or(Currency::USD);
    params.finish()?;
    let admin = &session.user;
    let months =
        analytics::GetRevenueHistoryRequest { months_count: MONTHS, currency_code: currency.to_string() };
    let (overview, revenue, history) = tokio::try_join!(
        app.backend.overview(admin),
        app.backend.revenue(admin, months),
        app.backend.total_history(admin, days),
    )?;
    let as_of = convert::required_time("as_of_time", overview.as_of_time.as_ref())?;
    let main = html! {
        div class="head" {
            h1 { "Overview" }
            p class="sub" { "Each account's current period, as of " (show::moment(as_of)) " (UTC)" }
        }
        (figures(&overview)?)
        (left_out(&overview, &revenue.currency_codes))
        (movements(&revenue, currency)?)
        (usage::calls(&history.days, history.days_count, as_of, Some("/admin"))?)
        div class="columns" {
            (by_plan(&overview)?)
            (top_users(&overview)?)
        }
    };
    let live = Some("/admin/live");
    let page =
        Page { session: &session, place: Place::Overview, title: "Overview", notice: None, live, main };
    Ok(page.into_response())
}

fn texts(
    overview: &analytics::GetOverviewResponse,
) -> Result<[(&'static str, &'static str, String); 5], Error> {
    let money = |micros| show::money(micros, &overview.currency_code);
    Ok([
        ("mrr", "Monthly recurring revenue", money(overview.mrr_micros)?),
        ("overage", "Overage", money(overview.overage_revenue_micros)?),
        ("total", "Together", money(overview.total_revenue_micros)?),
        ("calls", "Calls", thousands(overview.total_api_calls_count)),
        ("accounts", "Accounts", thousands(overview.total_users_count)),
    ])
}

fn figures(overview: &analytics::GetOverviewResponse) -> Result<Markup, Error> {
    let note = |key: &str| match key {
        "mrr" => "active and past due subscriptions",
        "overage" => "of this period, charged or not",
        "total" => "recurring revenue and overage",
        "calls" => "in this period",
        _ => "that are not closed",
    };
    Ok(html! {
        dl class="figures" {
            @for (key, name, text) in texts(overview)? {
                (part::figure(name, key, &text, &html! { (note(key)) }))
            }
        }
    })
}

fn by_plan(overview: &analytics::GetOverviewResponse) -> Result<Markup, Error> {
    let most = overview.users_by_plan.iter().map(|count| count.users_count).max().unwrap_or(0);
    Ok(html! {
        section aria-labelledby="by-plan" {
            h2 id="by-plan" { "Accounts by plan" }
            (part::scroll("Accounts by plan", &part::table("Accounts by plan", &[
                Column::Text("Plan"),
                Column::Number("Accounts"),
                Column::Unseen("Share"),
            ], &html! {
                @for count in &overview.users_by_plan {
                    tr {
                        th scope="row" { a href={ "/admin/users?plan=" (convert::plan_word(count.plan)?) } { (show::plan(count.plan)?) } }
                        td class="number" { (thousands(count.users_count)) }
                        td { (part::bar(count.users_count, most)) }
                    }
                }
            })))
        }
    })
}

fn top_users(overview: &analytics::GetOverviewResponse) -> Result<Markup, Error> {
    let most = overview.top_users.iter().map(|user| user.api_calls_count).max().unwrap_or(0);
    Ok(html! {
        section aria-labelledby="top-users" {
            h2 id="top-users" { "Most calls" }
            @if overview.top_users.is_empty() { (part::empty("No account has made a call in its current period.")) }
            @else {
                (part::scroll("Most calls", &part::table("Accounts with the most calls", &[
                    Column::Text("Account"),
                    Column::Text("Plan"),
                    Column::Number("Calls"),
                    Column::WideOnly("Share"),
                ], &html! {
                    @for user in &overview.top_users {
                        tr {
                            th scope="row" { a href={ "/admin/accounts/" (user.eco_id) } { (user.eco_id) } }
                            td { (show::plan(user.plan)?) }
                            td class="number" { (thousands(user.api_calls_count)) }
                            td class="wide-only" { (part::bar(user.api_calls_count, most)) }
                        }
                    }
                })))
                p { a href="/admin/users" { "All accounts" } }
            }
        }
    })
}

/// Currencies are not added up: whose revenue is not in the figures.
fn left_out(overview: &analytics::GetOverviewResponse, codes: &[String]) -> Markup {
    let others: Vec<&str> =
        codes.iter().map(String::as_str).filter(|code| *code != overview.currency_code).collect();
    html! {
        @if !others.is_empty() {
            p class="hint" {
                "Revenue is that of accounts in " (overview.currency_code) "; accounts in " (others.join(", "))
                " are not in it. Their recurring revenue is below, each currency by itself."
            }
        }
    }
}

/// The recurring revenue by month, and why it has changed.
fn movements(revenue: &analytics::GetRevenueHistoryResponse, currency: Currency) -> Result<Markup, Error> {
    let months = &revenue.months;
    let bars = months.iter().map(|month| {
        let label = month.month.clone();
        let mrr = show::money(month.mrr_micros, &month.currency_code)?;
        let overage = show::money(month.overage_micros, &month.currency_code)?;
        let title = format!("{label}: {mrr} recurring, {overage} overage");
        Ok(Bar {
            label,
            title,
            parts: [month.mrr_micros.max(0) / 1_000_000, month.overage_micros.max(0) / 1_000_000],
        })
    });
    let bars = bars.collect::<Result<Vec<_>, Error>>()?;
    let about = format!("Recurring revenue and overage of {} months, in {currency}", months.len());
    let begins = convert::optional_time("history_start_time", revenue.history_start_time.as_ref())?;
    let sign = if currency == Currency::USD { "$" } else { "" };
    Ok(html! {
        section aria-labelledby="revenue" {
            div class="section-head" {
                h2 id="revenue" { "Revenue by month" @if currency != Currency::USD { ", " (currency) } }
                @if revenue.currency_codes.len() > 1 { (currencies(&revenue.currency_codes, currency)) }
            }
            (chart::bars("Revenue by month", &about, &bars, |units| format!("{sign}{}", chart::compact(units)))?)
            p class="legend" { span class="key first" { "Recurring revenue at the month's end" } span class="key second" { "Overage charged" } }
            (part::scroll("Revenue by month", &movement_table(months)?))
            @if let Some(at) = begins {
                p class="hint" { "What moved the revenue is known since " (show::date(at)) ". What was paid by then is that month's opening; of the months before, only the overage is known." }
            }
        }
    })
}

fn currencies(codes: &[String], shown: Currency) -> Markup {
    html! {
        nav class="spans" aria-label="Currency that is shown" {
            @for code in codes {
                a href={ "/admin?currency=" (code) } aria-current=[(code == shown.as_str()).then_some("true")] { (code) }
            }
        }
    }
}

/// What moved the revenue, month by month; of what seldom happens, only what did.
fn movement_table(months: &[analytics::MonthlyRevenue]) -> Result<Markup, Error> {
    type Amount = fn(&analytics::MonthlyRevenue) -> i64;
    let movements: [(&str, bool, Amount); 6] = [
        ("Opening", false, |month| month.opening_micros),
        ("New", true, |month| month.new_micros),
        ("Back again", false, |month| month.reactivation_micros),
        ("Expansion", false, |month| month.expansion_micros),
        ("Contraction", false, |month| -month.contraction_micros.abs()),
        ("Churn", true, |month| -month.churn_micros.abs()),
    ];
    let shown: Vec<_> = movements
        .into_iter()
        .filter(|(_, always, amount)| *always || months.iter().any(|month| amount(month) != 0))
        .collect();
    let columns: Vec<_> = [Column::Text("Month")]
        .into_iter()
        .chain(shown.iter().map(|(name, ..)| Column::Number(name)))
        .chain([Column::Number("Recurring"), Column::Number("Overage")])
        .collect();
    Ok(part::table(
        "Revenue by month, newest first",
        &columns,
        &html! {
            @for month in months.iter().rev() {
                @let money = |micros: i64| show::money(micros, &month.currency_code);
                tr {
                    th scope="row" class="day" { (month.month) }
                    @for (_, _, amount) in &shown {
                        td class="number" { (money(amount(month))?) }
                    }
                    td class="number" { strong { (money(month.mrr_micros)?) } }
                    td class="number" { (money(month.overage_micros)?) }
                }
            }
        },
    ))
}

/// The figures at the page's head, as they change.
pub(super) async fn live(
    State(app): State<App>,
    AdminSession(session): AdminSession,
) -> Result<Response, Error> {
    live::stream(app, session, |app, session| async move {
        let overview = app.backend.overview(&session.user).await?;
        let mut figures = Figures::new();
        for (key, _, text) in texts(&overview)? {
            figures.set(key, text);
        }
        Ok(figures)
    })
}
