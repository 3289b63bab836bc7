//! What every page has around it: head, navigation, headers.

use axum::response::{Html, IntoResponse, Response};
use http::{
    HeaderName, HeaderValue,
    header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};
use maud::{DOCTYPE, Markup, html};

use super::{
    assets::{ICON, SCRIPT, STYLE},
    part,
    session::Session,
};

/// Only what comes from here, nothing inline, and no page of others around ours.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Where in the navigation a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `/dashboard`
    Usage,
    /// `/dashboard/keys`
    Keys,
    /// `/dashboard/billing`
    Billing,
    /// `/admin`
    Overview,
    /// `/admin/users`
    Users,
    /// `/admin/billing`
    Runs,
}

const OWN: [(Place, &str, &str); 3] = [
    (Place::Usage, "/dashboard", "Usage"),
    (Place::Keys, "/dashboard/keys", "API keys"),
    (Place::Billing, "/dashboard/billing", "Billing"),
];
const ADMIN: [(Place, &str, &str); 3] = [
    (Place::Overview, "/admin", "Overview"),
    (Place::Users, "/admin/users", "Accounts"),
    (Place::Runs, "/admin/billing", "Billing runs"),
];

/// A page of somebody who is signed in.
pub struct Page<'a> {
    /// Whose.
    pub session: &'a Session,
    /// Where it is.
    pub place: Place,
    /// Its title.
    pub title: &'a str,
    /// What was done before it is shown, in words.
    pub notice: Option<&'a str>,
    /// Where its figures are kept up to date from.
    pub live: Option<&'a str>,
    /// What is on it, with its heading.
    pub main: Markup,
}

impl Page<'_> {
    fn navigation(&self, label: &str, places: &[(Place, &str, &str)]) -> Markup {
        html! {
            nav aria-label=(label) {
                ul {
                    @for (place, path, name) in places {
                        li { a href=(path) aria-current=[(*place == self.place).then_some("page")] { (name) } }
                    }
                }
            }
        }
    }
}

impl IntoResponse for Page<'_> {
    fn into_response(self) -> Response {
        let body = html! {
            a class="skip" href="#main" { "Skip to the content" }
            header class="top" {
                div class="bar" {
                    a class="brand" href="/" { "Nexus" }
                    @if self.session.has_account { (self.navigation("Account", &OWN)) }
                    @if self.session.admin { (self.navigation("Administration", &ADMIN)) }
                    div class="who" {
                        span class="account" { (self.session.eco_id) }
                        form method="post" action="/sign-out" {
                            (part::hidden("csrf", &self.session.csrf))
                            button type="submit" class="quiet" { "Sign out" }
                        }
                    }
                }
            }
            main id="main" tabindex="-1" data-live=[self.live] {
                @if let Some(notice) = self.notice { (part::notice(notice)) }
                (self.main)
            }
        };
        document(self.title, &body)
    }
}

/// A page of nobody who is known.
pub struct Bare<'a> {
    /// Its title.
    pub title: &'a str,
    /// What is on it.
    pub main: Markup,
}

impl IntoResponse for Bare<'_> {
    fn into_response(self) -> Response {
        let body = html! {
            a class="skip" href="#main" { "Skip to the content" }
            header class="top" { div class="bar" { a class="brand" href="/" { "Nexus" } } }
            main id="main" class="narrow" tabindex="-1" { (self.main) }
        };
        document(self.title, &body)
    }
}

fn document(title: &str, body: &Markup) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Nexus metering" }
                link rel="icon" type="image/svg+xml" href=(ICON.path());
                link rel="stylesheet" href=(STYLE.path());
                script src=(SCRIPT.path()) defer {}
            }
            body { (body) }
        }
    };
    let headers = [
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        // The origin of a form is told to ourselves, and no address to others.
        (REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (CROSS_ORIGIN_OPENER_POLICY, HeaderValue::from_static("same-origin")),
    ];
    (headers, Html(page.into_string())).into_response()
}
