//! Sign-in at an identity provider, which is played here: it keeps what it was asked for, and gives tokens for codes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use axum::{Form, Json, Router, extract::State, http::StatusCode, routing::post};
use jsonwebtoken::{EncodingKey, Header, encode};
use nexus_core::plan::Plan;
use nexus_testkit::settings::{ANY_PORT, ISSUER, JWT_SECRET};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{suite::Suite, visitor::Visitor};

const CLIENT: &str = "nexus-pages";
const PUBLIC_URL: &str = "http://pages.example";

/// What the provider knows of the sign-in: the challenge, and the claims that the token is to have.
#[derive(Clone, Default)]
struct Provider(Arc<Mutex<(String, Value)>>);

impl Provider {
    fn expect(&self, challenge: &str, claims: Value) {
        *self.0.lock().expect("nobody panicked") = (challenge.to_owned(), claims);
    }

    async fn start(&self) -> Result<String> {
        let listener = tokio::net::TcpListener::bind(ANY_PORT).await?;
        let address = format!("http://{}", listener.local_addr()?);
        let app = Router::new().route("/token", post(token)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(address)
    }
}

async fn token(
    State(provider): State<Provider>,
    Form(form): Form<HashMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    let (challenge, claims) = provider.0.lock().expect("nobody panicked").clone();
    let digest = Sha256::digest(form.get("code_verifier").map(String::as_str).unwrap_or_default());
    let verifies = base64url(&digest) == challenge;
    let as_expected = form.get("code").map(String::as_str) == Some("the-code")
        && form.get("redirect_uri").is_some_and(|uri| *uri == format!("{PUBLIC_URL}/sign-in/oidc/callback"));
    if !verifies || !as_expected {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"})));
    }
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    let id_token = encode(&Header::default(), &claims, &key).expect("claims can be signed");
    (StatusCode::OK, Json(json!({"access_token": "a", "token_type": "Bearer", "id_token": id_token})))
}

fn base64url(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(bytes)
}

async fn suite(provider: &Provider) -> Result<Suite> {
    let address = provider.start().await?;
    let suite = Suite::start_with(|config| {
        config.pages.public_url = PUBLIC_URL.parse().ok();
        config.pages.oidc.authorize_url = Some(format!("{address}/authorize?tenant=a"));
        config.pages.oidc.token_url = Some(format!("{address}/token"));
        config.pages.oidc.client_id = Some(CLIENT.to_owned());
        config.pages.oidc.client_secret = Some("secret".into());
        config.pages.oidc.scopes = "openid email".to_owned();
    })
    .await?;
    suite.account("eco_a", Plan::Pro).await?;
    Ok(suite)
}

/// Goes to the provider; says what it was asked, and keeps the cookie.
async fn leave(visitor: &mut Visitor<'_>) -> Result<HashMap<String, String>> {
    let page = visitor.get("/sign-in?next=/dashboard/keys").await?;
    assert!(page.says("/sign-in/oidc?next=%2Fdashboard%2Fkeys"), "{}", page.html);
    let led = visitor.get("/sign-in/oidc?next=%2Fdashboard%2Fkeys").await?;
    assert_eq!(led.status, 303);
    let cookie = led.header("set-cookie");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=600"), "{cookie}");
    visitor.cookie = cookie.split(';').next().context("a cookie")?.to_owned();
    let url: reqwest::Url = led.header("location").parse()?;
    Ok(url.query_pairs().into_owned().collect())
}

fn claims(asked: &HashMap<String, String>) -> Value {
    json!({
        "iss": ISSUER, "aud": CLIENT, "ecoId": "eco_a", "nonce": asked["nonce"],
        "exp": chrono::Utc::now().timestamp() + 3_600,
    })
}

#[tokio::test]
async fn a_code_becomes_a_session_of_the_tokens_account() -> Result<()> {
    let provider = Provider::default();
    let suite = suite(&provider).await?;
    let mut visitor = Visitor::new(&suite)?;
    let asked = leave(&mut visitor).await?;
    for (name, value) in [
        ("tenant", "a"),
        ("response_type", "code"),
        ("client_id", CLIENT),
        ("scope", "openid email"),
        ("code_challenge_method", "S256"),
        ("redirect_uri", "http://pages.example/sign-in/oidc/callback"),
    ] {
        assert_eq!(asked.get(name).map(String::as_str), Some(value), "{name}");
    }
    provider.expect(&asked["code_challenge"], claims(&asked));
    let back = visitor.get(&format!("/sign-in/oidc/callback?code=the-code&state={}", asked["state"])).await?;
    assert_eq!((back.status.as_u16(), back.header("location")), (303, "/dashboard/keys"), "{}", back.html);
    let cookies: Vec<_> = back.headers.get_all("set-cookie").iter().filter_map(|c| c.to_str().ok()).collect();
    assert!(cookies[0].starts_with("nexus_session=ey"), "{cookies:?}");
    assert!(cookies[1].starts_with("nexus_away=;") && cookies[1].ends_with("Max-Age=0"), "{cookies:?}");
    visitor.cookie = cookies[0].split(';').next().context("a cookie")?.to_owned();
    assert!(visitor.get("/dashboard/keys").await?.says("eco_a"));
    Ok(())
}

#[tokio::test]
async fn what_does_not_belong_to_the_sign_in_is_refused() -> Result<()> {
    let provider = Provider::default();
    let suite = suite(&provider).await?;
    let changed = |asked: &HashMap<String, String>, name: &str, value: Value| {
        let mut claims = claims(asked);
        claims[name] = value;
        claims
    };
    let mut visitor = Visitor::new(&suite)?;
    let asked = leave(&mut visitor).await?;
    let (state, challenge) = (asked["state"].clone(), asked["code_challenge"].clone());
    let good = format!("code=the-code&state={state}");
    let cases = [
        (claims(&asked), challenge.clone(), "code=the-code&state=other".to_owned()),
        (claims(&asked), challenge.clone(), "code=the-code".to_owned()),
        (claims(&asked), challenge.clone(), format!("error=access_denied&state={state}")),
        (claims(&asked), challenge.clone(), format!("code=another&state={state}")),
        (claims(&asked), base64url(&Sha256::digest("another")), good.clone()),
        (changed(&asked, "nonce", "another".into()), challenge.clone(), good.clone()),
        (changed(&asked, "nonce", Value::Null), challenge.clone(), good.clone()),
        (changed(&asked, "aud", "another".into()), challenge.clone(), good.clone()),
        (changed(&asked, "aud", json!([CLIENT, "another"])), challenge.clone(), good.clone()),
        (changed(&asked, "iss", "another".into()), challenge.clone(), good.clone()),
        (changed(&asked, "exp", 1.into()), challenge.clone(), good.clone()),
        (changed(&asked, "ecoId", Value::Null), challenge.clone(), good.clone()),
    ];
    for (claims, challenge, query) in cases {
        provider.expect(&challenge, claims.clone());
        let refused = visitor.get(&format!("/sign-in/oidc/callback?{query}")).await?;
        assert_eq!(refused.status, 400, "{query} {claims}");
        let cookies: Vec<_> = refused.headers.get_all("set-cookie").iter().collect();
        assert!(
            cookies.iter().all(|cookie| !cookie.to_str().unwrap_or_default().starts_with("nexus_session")),
            "{cookies:?}"
        );
    }
    // Another browser, which the answer was slipped to.
    provider.expect(&challenge, claims(&asked));
    let other = Visitor::new(&suite)?;
    assert_eq!(other.get(&format!("/sign-in/oidc/callback?{good}")).await?.status, 400);
    // And in this one it is good.
    assert_eq!(visitor.get(&format!("/sign-in/oidc/callback?{good}")).await?.status, 303);
    Ok(())
}

#[tokio::test]
async fn without_a_provider_there_is_no_such_sign_in() -> Result<()> {
    let suite = Suite::start().await?;
    let visitor = Visitor::new(&suite)?;
    assert!(!visitor.get("/sign-in").await?.says("oidc"));
    assert_eq!(visitor.get("/sign-in/oidc").await?.status, 404);
    assert_eq!(visitor.get("/sign-in/oidc/callback?code=a&state=b").await?.status, 404);
    Ok(())
}
