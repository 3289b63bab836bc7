//! Who looks at the pages. The session is the user's own token, in a cookie that no script can read: it says itself
//! until when it is good, and each service verifies it with every call, so that nothing is kept here.

use axum::{
    extract::{FromRequestParts, State},
    response::{IntoResponse, Redirect, Response},
};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{COOKIE, SET_COOKIE},
    request::Parts,
};
use maud::html;
use nexus_kit::{
    auth::{AuthError, Caller},
    validate::Violations,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::{
    Pages,
    form::{Fields, Visitor},
    layout::Bare,
    part,
};
use crate::{App, Gateway, auth::User, error::Error, query::Params};

/// A browser keeps at most 4,096 bytes of a cookie, its name included.
const MAX_TOKEN: usize = 3_900;
/// Where somebody is led who asked for no page.
const HOME: &str = "/";

/// Somebody who is signed in.
pub struct Session {
    /// Calls the services.
    pub user: User,
    /// The account.
    pub eco_id: String,
    /// Whether it is listed as an admin's.
    pub admin: bool,
    /// Whether there is such an account: who administers may have none.
    pub has_account: bool,
    /// When the token ends.
    pub expires: DateTime<Utc>,
    /// What the forms of this session carry.
    pub csrf: String,
}

impl Session {
    /// The session of a request, if its cookie has a good token.
    pub fn of(app: &App, headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let Some(token) = cookie(headers, app.pages.session_cookie()) else { return Ok(None) };
        let Ok((Caller::User { eco_id, admin, .. }, expires)) = app.auth.session(token) else {
            return Ok(None);
        };
        let user = User::enter(app, &format!("Bearer {token}"))?;
        let csrf = app.pages.seal.of("session", token);
        Ok(Some(Self { user, eco_id: eco_id.to_string(), admin, has_account: true, expires, csrf }))
    }
}

impl Session {
    /// The same, of an admin, with whether there is an account beside.
    pub async fn of_admin(mut self, app: &App) -> Result<Self, Error> {
        if !self.admin {
            return Err(Error::Forbidden);
        }
        match app.backend.account(&self.user, "").await {
            Ok(_) => {}
            Err(Error::NotFound(_)) => self.has_account = false,
            // What the page is for may be there all the same.
            Err(error) => tracing::warn!(%error, "whether the admin has an account is not known"),
        }
        Ok(self)
    }
}

impl FromRequestParts<App> for Session {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        match Session::of(app, &parts.headers) {
            Ok(Some(session)) => Ok(session),
            Ok(None) => Err(led_to_sign_in(parts, app)),
            Err(error) => Err(error.into_response()),
        }
    }
}

/// Whoever asks for what everybody may see: one more request of the account whose session it is, or else of where it came
/// from.
pub struct Anybody;

impl FromRequestParts<App> for Anybody {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let token = cookie(&parts.headers, app.pages.session_cookie());
        match token.map(|token| app.auth.session(token)) {
            Some(Ok((Caller::User { eco_id, .. }, _))) => app.rates.account(&eco_id)?,
            _ => app.rates.stranger(&parts.extensions)?,
        }
        Ok(Self)
    }
}

/// An admin who is signed in.
pub struct AdminSession(pub Session);

impl FromRequestParts<App> for AdminSession {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let session = Session::from_request_parts(parts, app).await?;
        session.of_admin(app).await.map(Self).map_err(IntoResponse::into_response)
    }
}

/// One more request of a stranger, who is led to the sign-in.
pub fn led_to_sign_in(parts: &Parts, app: &App) -> Response {
    match app.rates.stranger(&parts.extensions) {
        Ok(()) => to_sign_in(parts).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Whose session a request is of.
pub fn caller(app: &Gateway, headers: &HeaderMap) -> Result<Caller, AuthError> {
    let token = cookie(headers, app.pages.session_cookie()).ok_or(AuthError::Missing)?;
    app.auth.authenticate(Some(&format!("Bearer {token}")))
}

/// Leads to the sign-in, and from there back to a page that was asked for.
fn to_sign_in(parts: &Parts) -> Redirect {
    let asked = parts.uri.path_and_query().map(|path| path.as_str()).filter(|path| is_page(path));
    match asked.filter(|_| parts.method == Method::GET) {
        None => Redirect::to("/sign-in"),
        Some(path) => {
            let query = form_urlencoded::Serializer::new(String::new()).append_pair("next", path).finish();
            Redirect::to(&format!("/sign-in?{query}"))
        }
    }
}

/// Whether a path is one of a page here, and nothing that a browser would take for another host's.
fn is_page(path: &str) -> bool {
    let within = |root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
    };
    (within("/dashboard") || within("/admin")) && !path.contains(|c: char| c.is_control() || c == '\\')
}

/// Proves that a form is one of ours: what it carries is made of the session that it was shown in. All replicas make the
/// same, by the secret that they share.
pub struct Seal([u8; 32]);

impl Seal {
    pub(super) fn new(secret: &SecretString) -> Self {
        let key = hmac(secret.expose_secret().as_bytes(), &["nexus pages"]);
        Self(key.finalize().into_bytes().into())
    }

    pub(super) fn of(&self, purpose: &str, of: &str) -> String {
        hex::encode(hmac(&self.0, &[purpose, "\0", of]).finalize().into_bytes())
    }

    pub(super) fn holds(&self, purpose: &str, of: &str, shown: &str) -> bool {
        let Ok(shown) = hex::decode(shown) else { return false };
        hmac(&self.0, &[purpose, "\0", of]).verify_slice(&shown).is_ok()
    }
}

fn hmac(key: &[u8], parts: &[&str]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("an HMAC takes a key of any length");
    for part in parts {
        mac.update(part.as_bytes());
    }
    mac
}

impl Pages {
    /// The session's cookie. A browser takes the prefix only over TLS, and for this host alone.
    pub(super) fn session_cookie(&self) -> &'static str {
        if self.secure { "__Host-nexus_session" } else { "nexus_session" }
    }

    /// The cookie of who is not signed in yet, which the sign-in's form belongs to.
    pub(super) fn visit_cookie(&self) -> &'static str {
        if self.secure { "__Host-nexus_visit" } else { "nexus_visit" }
    }

    /// The cookie of who is at the identity provider.
    pub(super) fn away_cookie(&self) -> &'static str {
        if self.secure { "__Host-nexus_away" } else { "nexus_away" }
    }

    /// Sets a cookie; without an age it ends with the browser.
    pub(super) fn set_cookie(&self, name: &str, value: &str, max_age: Option<i64>) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        let age = max_age.map(|age| format!("; Max-Age={age}")).unwrap_or_default();
        HeaderValue::try_from(format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}"))
            .expect("tokens and ids are visible ASCII")
    }
}

/// The value of a cookie.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
    let mut pairs = pairs.flat_map(|header| header.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(its, _)| *its == name).map(|(_, value)| value)
}

/// Leads an admin to the business, who may have no account, and everybody else to the account.
pub async fn home(session: Session) -> Redirect {
    Redirect::to(if session.admin { "/admin" } else { "/dashboard" })
}

/// The sign-in.
pub async fn form(
    State(app): State<App>,
    _: Anybody,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Error> {
    let next = params.short_text("next");
    let signed_out = params.short_text("done") == "signed-out";
    params.finish()?;
    if Session::of(&app, &headers)?.is_some() {
        return Ok(Redirect::to(if is_page(&next) { &next } else { HOME }).into_response());
    }
    let visit = cookie(&headers, app.pages.visit_cookie()).filter(|visit| is_visit(visit));
    let known = visit.is_some();
    let visit = visit.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    let mut response = sign_in_page(&app, &visit, &next, signed_out, None).into_response();
    if !known {
        let cookie = app.pages.set_cookie(app.pages.visit_cookie(), &visit, None);
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

fn is_visit(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit())
}

fn sign_in_page(app: &App, visit: &str, next: &str, signed_out: bool, wrong: Option<&str>) -> Bare<'static> {
    let main = html! {
        h1 { "Sign in" }
        @if signed_out { (part::notice("You are signed out.")) }
        @if let Some(wrong) = wrong { (part::alert(wrong)) }
        @if app.pages.oidc.is_some() {
            p { a class="button primary" href={ "/sign-in/oidc?" (part::query("next", next)) } { "Sign in with your organisation" } }
            p class="dim" { "Or with a token:" }
        }
        form method="post" action="/sign-in" class="stack" {
            (part::hidden("csrf", &app.pages.seal.of("visit", visit)))
            (part::hidden("next", next))
            div class="field" {
                label for="token" { "Access token" }
                p class="hint" id="token-hint" { "The JSON Web Token of your account. It stays in a cookie of this browser until it ends." }
                textarea id="token" name="token" rows="5" required autocomplete="off" spellcheck="false"
                    aria-describedby="token-hint" aria-invalid[wrong.is_some()] {}
            }
            button type="submit" class="primary" { "Sign in" }
        }
    };
    Bare { title: "Sign in", main }
}

/// Takes a token for a session.
pub async fn sign_in(State(app): State<App>, Visitor { visit, fields }: Visitor) -> Result<Response, Error> {
    let next = fields.text("next");
    let text = fields.text("token");
    let token = text.trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    match accept(&app, token) {
        Ok(expires) => Ok(begin(&app, token, expires, &next)),
        Err(wrong) => {
            let mut response = sign_in_page(&app, &visit, &next, false, Some(wrong)).into_response();
            *response.status_mut() = http::StatusCode::BAD_REQUEST;
            Ok(response)
        }
    }
}

/// Begins a session, and leads to a page.
pub(super) fn begin(app: &App, token: &str, expires: DateTime<Utc>, next: &str) -> Response {
    let age = (expires - Utc::now()).num_seconds().max(0);
    let mut response = Redirect::to(if is_page(next) { next } else { HOME }).into_response();
    let cookie = app.pages.set_cookie(app.pages.session_cookie(), token, Some(age));
    response.headers_mut().append(SET_COOKIE, cookie);
    response
}

/// Until when a session by this token lasts, or why there is none.
pub(super) fn accept(app: &App, token: &str) -> Result<DateTime<Utc>, &'static str> {
    if token.is_empty() {
        return Err("Paste a token to sign in.");
    }
    if token.len() > MAX_TOKEN {
        return Err("This token is too long to be kept in a cookie: it may have 3,900 bytes.");
    }
    match app.auth.session(token) {
        Ok((Caller::User { .. }, expires)) => Ok(expires),
        Ok(_) => Err("This is a service's token. A person signs in with a token of an account."),
        Err(_) => Err("This token is not accepted: it has ended, is incomplete, or was issued elsewhere."),
    }
}

/// Ends the session in this browser.
pub async fn sign_out(State(app): State<App>, _: super::form::Posted) -> Response {
    let mut response = Redirect::to("/sign-in?done=signed-out").into_response();
    let cookie = app.pages.set_cookie(app.pages.session_cookie(), "", Some(0));
    response.headers_mut().append(SET_COOKIE, cookie);
    response
}

/// What a form that is not ours is answered.
pub(super) fn not_ours() -> Error {
    Violations::one("form", "is not of this session: go back, reload the page, and send it again").into()
}

/// Whether a form of this purpose carries the right proof.
pub(super) fn proven(app: &App, purpose: &str, of: &str, fields: &Fields) -> bool {
    app.pages.seal.holds(purpose, of, &fields.text("csrf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_are_led_back_to() {
        for good in ["/dashboard", "/dashboard?days=7", "/dashboard/keys", "/admin/users?q=a", "/admin"] {
            assert!(is_page(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/dashboardx",
            "/dashboard\\x",
            "/dashboard/\r\nSet-Cookie: a",
            "/api/keys/list",
            "/sign-out",
            "dashboard",
        ] {
            assert!(!is_page(bad), "{bad}");
        }
    }

    #[test]
    fn a_seal_is_of_one_session_one_purpose_and_one_secret() {
        let seal = Seal::new(&"secret of the services".into());
        let proof = seal.of("session", "token");
        assert!(seal.holds("session", "token", &proof));
        for (purpose, of) in [("visit", "token"), ("session", "token2"), ("session", "")] {
            assert!(!seal.holds(purpose, of, &proof), "{purpose} {of}");
        }
        assert!(!Seal::new(&"another".into()).holds("session", "token", &proof));
        for bad in ["", "x", &proof[..10], &proof.replace(|c: char| c.is_ascii_digit(), "0")] {
            assert!(!seal.holds("session", "token", bad), "{bad}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; nexus_session=t.o.k"));
        headers.append(COOKIE, HeaderValue::from_static("nexus_session_2=x"));
        assert_eq!(cookie(&headers, "nexus_session"), Some("t.o.k"));
        assert_eq!(cookie(&headers, "nexus_visit"), None);
    }
}
