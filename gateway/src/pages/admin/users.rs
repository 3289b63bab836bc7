//! `/admin/users`: all accounts, searched, filtered, sorted, page by page.

use std::str::FromStr;

use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use nexus_core::{
    plan::{Plan, SubscriptionStatus},
    text::thousands,
};
use nexus_kit::convert::{plan_to_proto, status_to_proto};
use nexus_proto::analytics::v1 as analytics;

use crate::{
    App, convert,
    error::Error,
    pages::{
        layout::{Page, Place},
        part,
        session::AdminSession,
        show,
    },
    query::Params,
};

const PAGE_SIZE: i32 = 25;

const PLANS: [(&str, &str); 4] =
    [("", "All plans"), ("free", "Free"), ("pro", "Pro"), ("enterprise", "Enterprise")];
const STATUSES: [(&str, &str); 9] = [
    ("", "All states"),
    ("active", "Active"),
    ("trialing", "Trial"),
    ("past_due", "Past due"),
    ("unpaid", "Unpaid"),
    ("paused", "Paused"),
    ("incomplete", "Incomplete"),
    ("incomplete_expired", "Incomplete, expired"),
    ("canceled", "Canceled"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Usage,
    Overage,
    Revenue,
    Created,
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Sort::Usage => "usage",
            Sort::Overage => "overage",
            Sort::Revenue => "revenue",
            Sort::Created => "created",
        }
    }

    fn proto(self) -> analytics::UserSort {
        match self {
            Sort::Usage => analytics::UserSort::Usage,
            Sort::Overage => analytics::UserSort::Overage,
            Sort::Revenue => analytics::UserSort::Revenue,
            Sort::Created => analytics::UserSort::Created,
        }
    }
}

impl FromStr for Sort {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        [Sort::Usage, Sort::Overage, Sort::Revenue, Sort::Created]
            .into_iter()
            .find(|s| s.word() == word)
            .ok_or(())
    }
}

/// What is asked for.
struct Asked {
    page: i32,
    plan: Option<Plan>,
    status: Option<SubscriptionStatus>,
    sort: Sort,
    query: String,
}

impl Asked {
    fn of(mut params: Params) -> Result<Self, Error> {
        let asked = Self {
            page: params.page(),
            plan: params.choice("plan", "free, pro, enterprise"),
            status: params.choice("status", "a status of a subscription"),
            sort: params.choice("sort", "usage, overage, revenue, created").unwrap_or(Sort::Usage),
            query: params.short_text("q").trim().to_owned(),
        };
        params.finish()?;
        Ok(asked)
    }

    /// Said where no account is like what is asked for.
    fn none(&self) -> &'static str {
        if self.plan.is_none() && self.status.is_none() && self.query.is_empty() {
            "There is no account yet. The command nexus accounts create makes one."
        } else {
            "No account is like this."
        }
    }

    fn plan_word(&self) -> &'static str {
        self.plan.map_or("", Plan::as_str)
    }

    fn status_word(&self) -> &'static str {
        self.status.map_or("", SubscriptionStatus::as_str)
    }

    /// The address of another page or order of the same.
    fn path(&self, page: i32, sort: Sort) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in
            [("q", self.query.as_str()), ("plan", self.plan_word()), ("status", self.status_word())]
        {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        if sort != Sort::Usage {
            query.append_pair("sort", sort.word());
        }
        if page > 1 {
            query.append_pair("page", &page.to_string());
        }
        let query = query.finish();
        if query.is_empty() { "/admin/users".to_owned() } else { format!("/admin/users?{query}") }
    }

    fn request(&self) -> analytics::ListUsersRequest {
        analytics::ListUsersRequest {
            plan: self.plan.map_or(0, |plan| plan_to_proto(plan).into()),
            status: self.status.map_or(0, |status| status_to_proto(status).into()),
            query: self.query.clone(),
            sort: self.sort.proto().into(),
            page_size: PAGE_SIZE,
            skip_count: (self.page - 1).saturating_mul(PAGE_SIZE),
            page_token: String::new(),
        }
    }
}

/// The page.
pub(super) async fn page(
    State(app): State<App>,
    AdminSession(session): AdminSession,
    params: Params,
) -> Result<Response, Error> {
    let asked = Asked::of(params)?;
    let listed = app.backend.users(&session.user, asked.request()).await?;
    let pages = pages(listed.total_size);
    if asked.page > pages {
        return Ok(Redirect::to(&asked.path(pages, asked.sort)).into_response());
    }
    let main = html! {
        div class="head" {
            h1 { "Accounts" }
            p class="sub" { (thousands(listed.total_size)) @if listed.total_size == 1 { " account" } @else { " accounts" } ", usage and revenue of the current period" }
        }
        (filter(&asked))
        @if listed.users.is_empty() { (part::empty(asked.none())) }
        @else { (part::scroll("Accounts", &table(&asked, &listed.users)?)) }
        (pager(&asked, pages))
    };
    let page =
        Page { session: &session, place: Place::Users, title: "Accounts", notice: None, live: None, main };
    Ok(page.into_response())
}

fn pages(total: i64) -> i32 {
    i32::try_from((total + i64::from(PAGE_SIZE) - 1) / i64::from(PAGE_SIZE)).unwrap_or(i32::MAX).max(1)
}

fn filter(asked: &Asked) -> Markup {
    let select = |id: &str, label: &str, options: &[(&str, &str)], chosen: &str| {
        html! {
            div class="field" {
                label for=(id) { (label) }
                select id=(id) name=(id) {
                    @for (value, name) in options { option value=(value) selected[*value == chosen] { (name) } }
                }
            }
        }
    };
    html! {
        form method="get" action="/admin/users" class="inline filter" role="search" aria-label="Accounts" {
            div class="field grow" {
                label for="q" { "Id or email begins with" }
                input id="q" name="q" type="search" value=(asked.query) autocomplete="off" maxlength="320";
            }
            (select("plan", "Plan", &PLANS, asked.plan_word()))
            (select("status", "State", &STATUSES, asked.status_word()))
            @if asked.sort != Sort::Usage { (part::hidden("sort", asked.sort.word())) }
            button type="submit" { "Show" }
        }
    }
}

fn table(asked: &Asked, users: &[analytics::User]) -> Result<Markup, Error> {
    let sorted = |name: &str, sort: Sort, class: &str| {
        let is_it = asked.sort == sort;
        html! {
            th scope="col" class=(class) aria-sort=[is_it.then_some("descending")] {
                a href=(asked.path(1, sort)) { (name) @if is_it { span aria-hidden="true" { " ↓" } } }
            }
        }
    };
    Ok(html! {
        table class="users" {
            caption class="unseen" { "Accounts, sorted by " (asked.sort.word()) ", largest first" }
            thead { tr {
                th scope="col" { "Account" }
                (sorted("Calls", Sort::Usage, "number"))
                (sorted("Overage", Sort::Overage, "number"))
                (sorted("Revenue", Sort::Revenue, "number"))
                th scope="col" { "Plan" }
                th scope="col" { "State" }
                (sorted("Created", Sort::Created, ""))
                th scope="col" { "Last call" }
            } }
            tbody { @for user in users { (row(user)?) } }
        }
    })
}

fn row(user: &analytics::User) -> Result<Markup, Error> {
    let created = convert::required_time("create_time", user.create_time.as_ref())?;
    let last = convert::optional_time("last_api_call_time", user.last_api_call_time.as_ref())?;
    Ok(html! {
        tr {
            th scope="row" {
                a href={ "/admin/accounts/" (user.eco_id) } { (user.eco_id) }
                @if !user.email.is_empty() { span class="id" { (user.email) } }
            }
            td class="number" { (thousands(user.api_calls_count)) }
            td class="number" {
                @if user.overage_count == 0 { span class="dim" { "–" } }
                @else { (show::money(user.overage_cost_micros, &user.currency_code)?) span class="id" { (thousands(user.overage_count)) " calls" } }
            }
            td class="number" { (show::money(user.total_revenue_micros, &user.currency_code)?) }
            td { (show::plan(user.plan)?) }
            td { (show::status(user.status())) }
            td { (show::date(created)) }
            td { @match last { Some(at) => { (show::moment(at)) } None => { span class="dim" { "None" } } } }
        }
    })
}

fn pager(asked: &Asked, pages: i32) -> Markup {
    html! {
        nav class="pager" aria-label="Pages" {
            @if asked.page > 1 { a class="button" rel="prev" href=(asked.path(asked.page - 1, asked.sort)) { "Back" } }
            span { "Page " (asked.page) " of " (thousands(pages)) }
            @if asked.page < pages { a class="button" rel="next" href=(asked.path(asked.page + 1, asked.sort)) { "Next" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_keeps_what_is_asked_for() {
        let asked = Asked {
            page: 3,
            plan: Some(Plan::Pro),
            status: None,
            sort: Sort::Revenue,
            query: "eco_a&b".to_owned(),
        };
        assert_eq!(asked.path(4, Sort::Revenue), "/admin/users?q=eco_a%26b&plan=pro&sort=revenue&page=4");
        assert_eq!(asked.path(1, Sort::Usage), "/admin/users?q=eco_a%26b&plan=pro");
        assert_eq!(asked.request().skip_count, 50);
        assert_eq!([0, 1, 25, 26].map(pages), [1, 1, 1, 2]);
    }
}
