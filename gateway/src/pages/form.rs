//! What was posted. A form is read only once it is known to come from a page of ours: the browser says which origin it is
//! from, and the form carries what belongs to the session.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderName, Uri,
    header::{CONTENT_TYPE, HOST, ORIGIN},
};
use nexus_core::money::Micros;
use nexus_kit::validate::Violations;
use subtle::ConstantTimeEq;

use super::session::{self, Session};
use crate::{App, body, error::Error};

/// Longest form of somebody who is not signed in: a token, and what comes with it.
pub const MAX_VISITORS_BYTES: usize = 16 * 1024;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The fields of a form.
#[derive(Debug, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// A text; empty where it is left out.
    pub fn text(&self, name: &str) -> String {
        self.all(name).next().unwrap_or_default().to_owned()
    }

    /// A text without what is around it.
    pub fn trimmed(&self, name: &str) -> String {
        self.text(name).trim().to_owned()
    }

    /// The values of boxes that are ticked.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let of_name = move |(its, value): &'a (String, String)| (its == name).then_some(value.as_str());
        self.0.iter().filter_map(of_name)
    }

    /// Whether a box is ticked.
    pub fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// An amount of money, which may be written with separators and a sign.
    pub fn amount(&self, name: &str) -> Result<Micros, Violations> {
        let text: String = self.trimmed(name).chars().filter(|c| !matches!(c, ',' | '$' | ' ')).collect();
        let amount = text.parse().ok().filter(|amount: &Micros| amount.0 >= 0);
        amount.ok_or_else(|| Violations::one(name, "must be an amount of 0 or more, such as 25 or 12.50"))
    }
}

/// A form of somebody who is signed in.
pub struct Posted {
    /// Who.
    pub session: Session,
    /// What.
    pub fields: Fields,
}

impl FromRequest<App> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let session = match Session::of(app, &parts.headers).map_err(IntoResponse::into_response)? {
            Some(session) => session,
            None => return Err(session::led_to_sign_in(&parts, app)),
        };
        let fields =
            ours(app, Request::from_parts(parts, body)).await.map_err(IntoResponse::into_response)?;
        if !bool::from(fields.text("csrf").as_bytes().ct_eq(session.csrf.as_bytes())) {
            return Err(session::not_ours().into_response());
        }
        Ok(Self { session, fields })
    }
}

/// A form of an admin.
pub struct AdminPosted(pub Posted);

impl FromRequest<App> for AdminPosted {
    type Rejection = Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Response> {
        let Posted { session, fields } = Posted::from_request(request, app).await?;
        let session = session.of_admin(app).await.map_err(IntoResponse::into_response)?;
        Ok(Self(Posted { session, fields }))
    }
}

/// A form of somebody who is not signed in.
pub struct Visitor {
    /// The value of the cookie.
    pub visit: String,
    /// What was posted.
    pub fields: Fields,
}

impl FromRequest<App> for Visitor {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        app.rates.stranger(request.extensions())?;
        let visit =
            session::cookie(request.headers(), app.pages.visit_cookie()).unwrap_or_default().to_owned();
        let fields = ours(app, request).await?;
        if visit.is_empty() || !session::proven(app, "visit", &visit, &fields) {
            return Err(session::not_ours());
        }
        Ok(Self { visit, fields })
    }
}

/// The fields of a form that a page of our origin has sent.
async fn ours(app: &App, request: Request) -> Result<Fields, Error> {
    let public_url = app.pages.public_url.as_ref().map(|origin| origin.as_str());
    if !is_of_our_origin(request.headers(), request.uri(), public_url) {
        return Err(session::not_ours());
    }
    let form = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if form.is_none_or(|kind| !kind.starts_with("application/x-www-form-urlencoded")) {
        return Err(Violations::one("body", "must be a form").into());
    }
    let bytes = body::whole(request, app).await?;
    Ok(Fields(form_urlencoded::parse(&bytes).into_owned().collect()))
}

/// Browsers say where a request is from, by one header or the other; what says neither is no form of a page.
fn is_of_our_origin(headers: &HeaderMap, uri: &Uri, public_url: Option<&str>) -> bool {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    if let Some(site) = text(SEC_FETCH_SITE) {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(ORIGIN) else { return false };
    let host = text(HOST).or_else(|| uri.authority().map(|authority| authority.as_str()));
    let is_host = origin.split_once("://").is_some_and(|(_, its)| Some(its) == host);
    is_host || Some(origin) == public_url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)));
        let uri = Uri::from_static("/sign-in");
        is_of_our_origin(&headers.collect(), &uri, Some("https://metering.example.com"))
    }

    #[test]
    fn a_form_comes_from_our_origin() {
        let host = ("host", "localhost:8080");
        assert!(of(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(of(&[host, ("origin", "http://localhost:8080")]));
        assert!(of(&[host, ("origin", "https://metering.example.com")]));
        for foreign in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "null"),
            ("origin", "http://localhost:8081"),
            ("origin", "https://evil.example"),
            ("accept", "*/*"),
        ] {
            assert!(!of(&[host, foreign]), "{foreign:?}");
        }
        // The browser's word is the stronger one.
        assert!(!of(&[host, ("sec-fetch-site", "cross-site"), ("origin", "http://localhost:8080")]));
    }

    #[test]
    fn amounts_are_read_as_people_write_them() {
        let read = |text: &str| Fields(vec![("a".to_owned(), text.to_owned())]).amount("a").map(|m| m.0).ok();
        assert_eq!(read(" $1,250.50 "), Some(1_250_500_000));
        assert_eq!(read("0"), Some(0));
        for bad in ["", "-1", "x", "1.2.3", "$"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
