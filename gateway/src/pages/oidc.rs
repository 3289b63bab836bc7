//! Sign-in at an identity provider: OpenID Connect's code flow with PKCE, state and nonce. The id token that comes of it
//! is the session, if it is one that the services take for a user's: signed by a key of theirs, and with an `ecoId`.

use std::{error::Error as StdError, time::Duration};

use axum::{
    body::Bytes,
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::Utc;
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
    url::{Host, Url},
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    config::{OidcArgs, Origin},
    layout::Bare,
    part,
    session::{self, Anybody, Seal},
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
        let token = TokenUrl::new(token.clone()).map_err(bad("OIDC_TOKEN_URL"))?;
        if !is_secure(token.url()) {
            return Err(StartError::Oidc(
                "OIDC_TOKEN_URL: must be https, unless it is this machine".to_owned(),
            ));
        }
        let mut provider = Client::new(ClientId::new(client_id.clone()))
            .set_auth_uri(AuthUrl::new(authorize.clone()).map_err(bad("OIDC_AUTHORIZE_URL"))?)
            .set_token_uri(token)
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

/// Codes and the secret go there.
fn is_secure(url: &Url) -> bool {
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_here)
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

/// What is kept in a cookie while somebody is at the provider, under our seal: the provider is asked for nobody who was not
/// led to it from here, nor later than a sign-in may take.
struct Away {
    /// In seconds since 1970.
    until: i64,
    state: String,
    nonce: String,
    verifier: String,
    next: String,
}

impl Away {
    fn cookie(&self, seal: &Seal) -> String {
        let Self { until, state, nonce, verifier, next } = self;
        let kept = format!("{until}.{state}.{nonce}.{verifier}.{}", BASE64.encode(next));
        format!("{kept}.{}", seal.of("away", &kept))
    }

    fn of(cookie: &str, seal: &Seal, now: i64) -> Option<Self> {
        let (kept, _) = cookie.rsplit_once('.').filter(|(kept, shown)| seal.holds("away", kept, shown))?;
        let mut parts = kept.split('.').map(str::to_owned);
        let until = parts.next()?.parse().ok().filter(|until| now <= *until)?;
        let (state, nonce, verifier) = (parts.next()?, parts.next()?, parts.next()?);
        let next = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
        Some(Self { until, state, nonce, verifier, next })
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
    let until = Utc::now().timestamp() + MAX_AGE;
    let away = Away { until, state: state.into_secret(), nonce, verifier: verifier.into_secret(), next };
    let mut response = Redirect::to(url.as_str()).into_response();
    let cookie = app.pages.set_cookie(app.pages.away_cookie(), &away.cookie(&app.pages.seal), Some(MAX_AGE));
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
    let away = session::cookie(&headers, app.pages.away_cookie());
    let away = away.and_then(|away| Away::of(away, &app.pages.seal, Utc::now().timestamp()));
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
    fn what_is_kept_comes_back_under_our_seal_and_in_time() {
        let seal = Seal::new(&"secret of the services".into());
        let away = |next: &str| Away {
            until: 100,
            state: "s".into(),
            nonce: "n".into(),
            verifier: "v".into(),
            next: next.into(),
        };
        for next in ["", "/admin/users?q=a.b"] {
            let kept = Away::of(&away(next).cookie(&seal), &seal, 100);
            assert_eq!(kept.map(|away| away.next).as_deref(), Some(next));
        }
        let good = away("").cookie(&seal);
        assert!(Away::of(&good, &seal, 101).is_none(), "late");
        let another = Seal::new(&"another".into());
        let made_up = ["", ".", "100.s.n.v.", &away("").cookie(&another), &good.replacen('s', "t", 1)];
        for bad in made_up {
            assert!(Away::of(bad, &seal, 100).is_none(), "{bad}");
        }
    }

    #[test]
    fn codes_travel_over_tls_or_not_at_all() {
        let secure = |url: &str| is_secure(&url.parse().expect("a URL"));
        for good in
            ["https://id.example/token", "http://localhost:9000/token", "http://127.0.0.1/", "http://[::1]/"]
        {
            assert!(secure(good), "{good}");
        }
        for bad in
            ["http://id.example/token", "http://localhost.example/", "http://10.0.0.1/", "ftp://localhost/"]
        {
            assert!(!secure(bad), "{bad}");
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
