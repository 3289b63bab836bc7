//! `/dashboard/keys`: an account's API keys: made, given new secrets, revoked.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use http::StatusCode;
use maud::{Markup, html};
use nexus_kit::{convert::datetime, validate::Violations};
use nexus_proto::usage::v1::{self as usage, ApiKeyStatus};

use super::{
    form::{Fields, Posted},
    layout::{Page, Place},
    part::{self, Column},
    session::Session,
    show,
};
use crate::{App, convert, error::Error, query::Params};

const PAGE_SIZE: i32 = 100;
/// A key is looked for on so many pages: an account makes at most 1,000 a day.
const MAX_PAGES: usize = 20;

/// What a key may do over gRPC, with what it says to people.
const SCOPES: [(&str, &str); 2] =
    [("usage.write", "Record usage"), ("usage.check", "Check limits and read usage")];

/// How long an old secret may stay valid.
const GRACES: [(&str, &str); 4] = [
    ("86400000", "A day"),
    ("3600000", "An hour"),
    ("604800000", "A week"),
    ("0", "Not at all: replace it now"),
];

/// The list, and the form for another one.
pub async fn list(State(app): State<App>, session: Session, mut params: Params) -> Result<Response, Error> {
    let page_token = params.page_token();
    let done = params.short_text("done");
    params.finish()?;
    let notice = (done == "revoked").then_some("The key is revoked. It is refused from now on.");
    render(&app, &session, page_token, notice, None).await
}

async fn render(
    app: &App,
    session: &Session,
    page_token: String,
    notice: Option<&str>,
    wrong: Option<(&Violations, &Fields)>,
) -> Result<Response, Error> {
    let request = usage::ListApiKeysRequest { eco_id: String::new(), page_size: PAGE_SIZE, page_token };
    let listed = app.backend.api_keys(&session.user, request).await?;
    let main = html! {
        div class="head" {
            h1 { "API keys" }
            p class="sub" { "A key lets a program call in the name of this account." }
        }
        section aria-labelledby="all-keys" {
            h2 id="all-keys" class="unseen" { "All keys" }
            @if listed.api_keys.is_empty() {
                (part::empty("There is no key yet. Create the first below."))
            } @else {
                (part::page_of("API keys", &table(&listed.api_keys)?, "/dashboard/keys", &listed.next_page_token, "Older keys"))
            }
        }
        (create_form(session, wrong))
    };
    let page = Page { session, place: Place::Keys, title: "API keys", notice, live: None, main };
    Ok(page.into_response())
}

fn table(keys: &[usage::ApiKey]) -> Result<Markup, Error> {
    Ok(part::table(
        "API keys, newest first",
        &[
            Column::Text("Name"),
            Column::Text("State"),
            Column::Text("Scopes"),
            Column::Text("Last used"),
            Column::Text("Created"),
        ],
        &html! {
            @for key in keys {
                tr {
                    th scope="row" {
                        a href={ "/dashboard/keys/" (key.key_id) } { (key.name) }
                        span class="id" { (key.key_id) }
                    }
                    td { (state(key)?) }
                    td { (scopes(key)) }
                    td { (last_used(key)?) }
                    td { (show::date(convert::required_time("create_time", key.create_time.as_ref())?)) }
                }
            }
        },
    ))
}

fn state(key: &usage::ApiKey) -> Result<Markup, Error> {
    let test = if key.test_mode {
        part::badge("Test", "plain")
    } else {
        html! {}
    };
    Ok(match key.status() {
        ApiKeyStatus::Active => html! { (part::badge("Active", "good")) " " (test) },
        ApiKeyStatus::Revoked => html! { (part::badge("Revoked", "plain")) " " (test) },
        ApiKeyStatus::Unspecified => {
            return Err(Error::Internal("the service sent no status of a key".to_owned()));
        }
    })
}

fn scopes(key: &usage::ApiKey) -> Markup {
    html! {
        @if key.scopes.is_empty() { "Everything a key may" }
        @else { span class="code" { (key.scopes.join(", ")) } }
    }
}

fn last_used(key: &usage::ApiKey) -> Result<Markup, Error> {
    let at = convert::optional_time("last_used_time", key.last_used_time.as_ref())?;
    Ok(at.map_or_else(|| html! { "Never" }, show::moment))
}

fn create_form(session: &Session, wrong: Option<(&Violations, &Fields)>) -> Markup {
    let given = |name: &str| wrong.map(|(_, fields)| fields.text(name)).unwrap_or_default();
    let ticked = |scope: &str| wrong.is_some_and(|(_, fields)| fields.all("scope").any(|its| its == scope));
    html! {
        section class="panel" aria-labelledby="create" {
            h2 id="create" { "Create a key" }
            @if let Some((wrong, _)) = wrong { (part::violations(wrong)) }
            form method="post" action="/dashboard/keys" class="stack" {
                (part::form_fields(&session.csrf))
                div class="field" {
                    label for="name" { "Name" }
                    input id="name" name="name" required maxlength="100" autocomplete="off" value=(given("name"))
                        aria-invalid[wrong.is_some()];
                }
                fieldset {
                    legend { "Scopes" }
                    p class="hint" { "Without any the key may do everything a key may." }
                    @for (scope, label) in SCOPES {
                        label class="check" {
                            input type="checkbox" name="scope" value=(scope) checked[ticked(scope)];
                            span { (label) " " span class="code" { (scope) } }
                        }
                    }
                    div class="field" {
                        label for="other_scopes" { "Others, for services that read them" }
                        input id="other_scopes" name="other_scopes" autocomplete="off" value=(given("other_scopes"))
                            aria-describedby="other-scopes-hint";
                        p class="hint" id="other-scopes-hint" { "Words of small letters, digits and _ . : -, separated by spaces." }
                    }
                }
                label class="check" {
                    input type="checkbox" name="test_mode" value="1" checked[!given("test_mode").is_empty()];
                    span { "Test mode: metered apart, never limited or billed" }
                }
                button type="submit" class="primary" { "Create the key" }
            }
        }
    }
}

/// Makes a key, and shows its secret. The same form sent again makes no second one.
pub async fn create(State(app): State<App>, Posted { session, fields }: Posted) -> Result<Response, Error> {
    let others = fields.text("other_scopes");
    let request = usage::CreateApiKeyRequest {
        eco_id: String::new(),
        name: fields.trimmed("name"),
        scopes: fields.all("scope").chain(others.split_whitespace()).map(str::to_owned).collect(),
        test_mode: fields.flag("test_mode"),
        request_id: fields.text("request_id"),
    };
    match app.backend.create_api_key(&session.user, request).await {
        Ok(made) => {
            let key =
                made.api_key.ok_or_else(|| Error::Internal("the service left out api_key".to_owned()))?;
            let about = html! { p { "The key " strong { (key.name) } " is created." } };
            Ok(secret_page(&session, "The new key", &made.key, &about))
        }
        Err(Error::BadRequest(wrong)) => {
            let mut response = render(&app, &session, String::new(), None, Some((&wrong, &fields))).await?;
            *response.status_mut() = StatusCode::BAD_REQUEST;
            Ok(response)
        }
        Err(error) => Err(error),
    }
}

fn secret_page(session: &Session, title: &str, secret: &str, about: &Markup) -> Response {
    let main = html! {
        div class="head" { h1 { (title) } }
        (about)
        section class="panel" {
            (part::copyable("Key", secret))
            p class="notice" { "Keep it now: it is not shown again." }
        }
        p { "Send it with each call: " code { "Authorization: ApiKey " span class="dim" { "…" } } }
        p { a class="button" href="/dashboard/keys" { "To the keys" } }
    };
    Page { session, place: Place::Keys, title, notice: None, live: None, main }.into_response()
}

/// One key.
pub async fn one(
    State(app): State<App>,
    session: Session,
    Path(key_id): Path<String>,
    mut params: Params,
) -> Result<Response, Error> {
    let confirm = params.short_text("confirm") == "revoke";
    params.finish()?;
    let key = find(&app, &session, &key_id).await?;
    let active = key.status() == ApiKeyStatus::Active;
    let main = html! {
        p class="crumb" { a href="/dashboard/keys" { "API keys" } }
        div class="head" { h1 { (key.name) } p class="sub id" { (key.key_id) } }
        dl class="facts" {
            div { dt { "State" } dd { (state(&key)?) } }
            div { dt { "Scopes" } dd { (scopes(&key)) } }
            div { dt { "Last used" } dd { (last_used(&key)?) } }
            div { dt { "Created" } dd { (show::moment(convert::required_time("create_time", key.create_time.as_ref())?)) } }
        }
        @if active && confirm { (revoke_form(&session, &key)) }
        @else if active {
            (rotate_form(&session, &key))
            section aria-labelledby="revoke" {
                h2 id="revoke" { "Revoke" }
                p { "A revoked key is refused within a second, for good." }
                p { a class="button danger" href={ "/dashboard/keys/" (key.key_id) "?confirm=revoke" } { "Revoke this key" } }
            }
        }
    };
    let page =
        Page { session: &session, place: Place::Keys, title: &key.name, notice: None, live: None, main };
    Ok(page.into_response())
}

async fn find(app: &App, session: &Session, key_id: &str) -> Result<usage::ApiKey, Error> {
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let request = usage::ListApiKeysRequest { eco_id: String::new(), page_size: PAGE_SIZE, page_token };
        let page = app.backend.api_keys(&session.user, request).await?;
        if let Some(key) = page.api_keys.into_iter().find(|key| key.key_id == key_id) {
            return Ok(key);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Err(Error::NotFound("API key not found"))
}

fn rotate_form(session: &Session, key: &usage::ApiKey) -> Markup {
    html! {
        section class="panel" aria-labelledby="rotate" {
            h2 id="rotate" { "Rotate" }
            p { "The key gets a new secret. The old one stays valid for a while, so that your programs can change over." }
            form method="post" action={ "/dashboard/keys/" (key.key_id) "/rotate" } class="inline" {
                (part::form_fields(&session.csrf))
                div class="field" {
                    label for="grace" { "The old secret stays valid" }
                    select id="grace" name="grace_period_ms" {
                        @for (value, label) in GRACES { option value=(value) { (label) } }
                    }
                }
                button type="submit" class="primary" { "Rotate the key" }
            }
        }
    }
}

fn revoke_form(session: &Session, key: &usage::ApiKey) -> Markup {
    html! {
        section class="panel" aria-labelledby="revoke" {
            h2 id="revoke" { "Revoke " (key.name) "?" }
            p { "Programs that use it are refused within a second. This cannot be taken back." }
            form method="post" action={ "/dashboard/keys/" (key.key_id) "/revoke" } class="inline" {
                (part::form_fields(&session.csrf))
                button type="submit" class="danger" { "Revoke it" }
                a class="button" href={ "/dashboard/keys/" (key.key_id) } { "Keep it" }
            }
        }
    }
}

/// Gives a key a new secret, and shows it.
pub async fn rotate(
    State(app): State<App>,
    Path(key_id): Path<String>,
    Posted { session, fields }: Posted,
) -> Result<Response, Error> {
    let grace = fields.text("grace_period_ms");
    let grace: i64 =
        grace.parse().map_err(|_| Violations::one("grace_period_ms", "must be a whole number"))?;
    let request = usage::RotateApiKeyRequest {
        key_id,
        grace_period_ms: Some(grace),
        request_id: fields.text("request_id"),
    };
    let rotated = app.backend.rotate_api_key(&session.user, request).await?;
    let until = rotated.previous_expire_time.as_ref().map(datetime).transpose();
    let until = until.map_err(|e| Error::Internal(format!("the service sent a bad time: {e}")))?;
    let about = html! {
        @match until.filter(|_| grace > 0) {
            Some(until) => p { "The old secret stays valid until " (show::moment(until)) " (UTC)." },
            None => p { "The old secret is not valid any more." },
        }
    };
    Ok(secret_page(&session, "The key has a new secret", &rotated.key, &about))
}

/// Revokes a key.
pub async fn revoke(
    State(app): State<App>,
    Path(key_id): Path<String>,
    Posted { session, .. }: Posted,
) -> Result<Response, Error> {
    app.backend.revoke_api_key(&session.user, usage::RevokeApiKeyRequest { key_id }).await?;
    Ok(Redirect::to("/dashboard/keys?done=revoked").into_response())
}
