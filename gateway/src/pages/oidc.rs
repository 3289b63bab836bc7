//! Sign-in at an identity provider: OpenID Connect's code flow with PKCE, state and nonce. The id token that comes of it
//! is the session, if it is one that the services take for a user's: signed by a key of theirs, and with an `ecoId`.

use std::{error::Error as StdError, time::Duration};

use axum::{
    body::Bytes,
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use http::{HeaderMap, StatusCode, header::SET_COOKIE};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use maud::html;
use oauth2::{
    AuthUrl, AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken, EndpointNotSet, EndpointSet,
    ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope,
    StandardRevocableToken, StandardTokenResponse, TokenUrl,
    basic::{
        BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
    },
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    config::{OidcArgs, Origin},
    layout::Bare,
    part,
    session::{self, Anybody},
};
use crate::{App, StartError, error::Error, query::Params};

/// Longest time that a sign-in at the provider may take.
const MAX_AGE: i64 = 600;
/// And the provider to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 64 * 1024;

const CALLBACK: &str = "/sign-in/oidc/callback";

/// What a token's answer has beyond OAuth.
#[derive(Debug, Serialize, Deserialize)]
struct IdToken {
    id_token: Option<String>,
}

impl ExtraTokenFields for IdToken {}

type Provider = Client<
    BasicErrorResponse,
    StandardTokenResponse<IdToken, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

type Http = HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// An identity provider.
pub struct Oidc {
    provider: Provider,
    client_id: String,
    scopes: Vec<String>,
    http: Http,
}

impl Oidc {
    /// The one that the settings name, if they name one.
    pub fn new(args: &OidcArgs, public_url: Option<&Origin>) -> Result<Option<Self>, StartError> {
        let (Some(authorize), Some(token), Some(client_id)) =
            (&args.authorize_url, &args.token_url, &args.client_id)
        else {
            return Ok(None);
        };
        let bad = |setting: &'static str| {
            move |e: oauth2::url::ParseError| StartError::Oidc(format!("{setting}: {e}"))
        };
        let origin = public_url.ok_or_else(|| StartError::Oidc("PUBLIC_URL must be set, too".to_owned()))?;
        let callback = format!("{}{CALLBACK}", origin.as_str());
        let mut provider = Client::new(ClientId::new(client_id.clone()))
            .set_auth_uri(AuthUrl::new(authorize.clone()).map_err(bad("OIDC_AUTHORIZE_URL"))?)
            .set_token_uri(TokenUrl::new(token.clone()).map_err(bad("OIDC_TOKEN_URL"))?)
            .set_redirect_uri(RedirectUrl::new(callback).map_err(bad("PUBLIC_URL"))?);
        if let Some(secret) = &args.client_secret {
            provider = provider.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()));
        }
        let connector = HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1();
        Ok(Some(Self {
            provider,
            client_id: client_id.clone(),
            scopes: args.scopes.split_whitespace().map(str::to_owned).collect(),
            http: HttpClient::builder(TokioExecutor::new()).build(connector.build()),
        }))
    }

    async fn exchange(&self, code: String, verifier: String) -> Result<String, String> {
        let http = self.http.clone();
        let send = move |request| send(http.clone(), request);
        let exchange = self
            .provider
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier));
        let answer = timeout(TIMEOUT, exchange.request_async(&send)).await;
        let answer =
            answer.map_err(|_| "the provider does not answer".to_owned())?.map_err(|e| e.to_string())?;
        answer.extra_fields().id_token.clone().ok_or_else(|| "the provider gave no id token".to_owned())
    }
}

async fn send(http: Http, request: HttpRequest) -> Result<HttpResponse, SendError> {
    let request = request.map(|body| Full::new(Bytes::from(body)));
    let answer = http.request(request).await.map_err(|e| SendError(Box::new(e)))?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(SendError)?;
    Ok(HttpResponse::from_parts(parts, body.to_bytes().into()))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SendError(Box<dyn StdError + Send + Sync>);

/// What is kept in a cookie while somebody is at the provider.
struct Away {
    state: String,
    nonce: String,
    verifier: String,
    next: String,
}

impl Away {
    fn cookie(&self) -> String {
        [&self.state, &self.nonce, &self.verifier, &BASE64.encode(&self.next)].map(String::as_str).join(".")
    }

    fn of(cookie: &str) -> Option<Self> {
        let mut parts = cookie.split('.').map(str::to_owned);
        let (state, nonce, verifier) = (parts.next()?, parts.next()?, parts.next()?);
        let next = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
        (parts.next().is_none() && !state.is_empty() && !nonce.is_empty()).then_some(Self {
            state,
            nonce,
            verifier,
            next,
        })
    }
}

fn provider(app: &App) -> Result<&Oidc, Error> {
    app.pages.oidc.as_ref().ok_or(Error::NotFound("Not found"))
}

/// Leads to the provider.
pub async fn leave(State(app): State<App>, _: Anybody, mut params: Params) -> Result<Response, Error> {
    let oidc = provider(&app)?;
    let next = params.short_text("next");
    params.finish()?;
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let nonce = CsrfToken::new_random().into_secret();
    let (url, state) = oidc
        .provider
        .authorize_url(CsrfToken::new_random)
        .add_scopes(oidc.scopes.iter().cloned().map(Scope::new))
        .add_extra_param("nonce", &nonce)
        .set_pkce_challenge(challenge)
        .url();
    let away = Away { state: state.into_secret(), nonce, verifier: verifier.into_secret(), next };
    let mut response = Redirect::to(url.as_str()).into_response();
    let cookie = app.pages.set_cookie(app.pages.away_cookie(), &away.cookie(), Some(MAX_AGE));
    response.headers_mut().append(SET_COOKIE, cookie);
    Ok(response)
}

/// Where the provider leads back to.
pub async fn come_back(
    State(app): State<App>,
    _: Anybody,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Error> {
    let oidc = provider(&app)?;
    let (code, state, error) = (params.text("code"), params.text("state"), params.text("error"));
    params.finish()?;
    let away = session::cookie(&headers, app.pages.away_cookie()).and_then(Away::of);
    let forget = app.pages.set_cookie(app.pages.away_cookie(), "", Some(0));
    let signed_in = match (away, code, state) {
        (Some(away), Some(code), Some(state)) if state == away.state => {
            come_in(&app, oidc, code, &away).await.map(|token| (token, away.next))
        }
        (Some(away), None, Some(state)) if state == away.state => {
            Err(format!("the provider refused: {}", error.as_deref().unwrap_or("without a reason")))
        }
        _ => Err("the answer belongs to no sign-in that was begun in this browser".to_owned()),
    };
    let mut response = match signed_in {
        Ok(((token, expires), next)) => session::begin(&app, &token, expires, &next),
        Err(reason) => {
            tracing::warn!(reason, "a sign-in by the identity provider failed");
            refused()
        }
    };
    response.headers_mut().append(SET_COOKIE, forget);
    Ok(response)
}

async fn come_in(
    app: &App,
    oidc: &Oidc,
    code: String,
    away: &Away,
) -> Result<(String, chrono::DateTime<chrono::Utc>), String> {
    let token = oidc.exchange(code, away.verifier.clone()).await?;
    // Its signature, issuer and time, by the keys that the services have.
    let expires = session::accept(app, &token).map_err(str::to_owned)?;
    let claims = claims(&token).ok_or("the id token has no claims")?;
    if claims["nonce"] != away.nonce.as_str() {
        return Err("the id token is of another sign-in".to_owned());
    }
    if !is_for(&claims["aud"], &oidc.client_id) {
        return Err("the id token is for another client".to_owned());
    }
    Ok((token, expires))
}

/// The claims of a token whose signature was verified.
fn claims(token: &str) -> Option<serde_json::Value> {
    serde_json::from_slice(&BASE64.decode(token.split('.').nth(1)?).ok()?).ok()
}

/// A token for several clients is not taken: it may have been given to another one of them.
fn is_for(audience: &serde_json::Value, client_id: &str) -> bool {
    match audience {
        serde_json::Value::String(one) => one == client_id,
        serde_json::Value::Array(all) => all.len() == 1 && all[0] == client_id,
        _ => false,
    }
}

fn refused() -> Response {
    let main = html! {
        h1 { "Sign in" }
        (part::alert("The sign-in has failed. Try again."))
        p { a class="button" href="/sign-in" { "To the sign-in" } }
    };
    let mut response = Bare { title: "Sign in", main }.into_response();
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let away = |next: &str| Away {
            state: "s".into(),
            nonce: "n".into(),
            verifier: "v".into(),
            next: next.into(),
        };
        for next in ["", "/admin/users?q=a.b"] {
            assert_eq!(Away::of(&away(next).cookie()).map(|away| away.next).as_deref(), Some(next));
        }
        for bad in ["", "..", "...", "s.n.v", "s.n.v.!", "s.n.v..x"] {
            assert!(Away::of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_for_this_client_alone() {
        use serde_json::json;
        assert!(is_for(&json!("nexus"), "nexus") && is_for(&json!(["nexus"]), "nexus"));
        for other in [json!(null), json!("other"), json!(["nexus", "other"]), json!([])] {
            assert!(!is_for(&other, "nexus"), "{other}");
        }
    }
}
