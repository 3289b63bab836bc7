//! `/api/keys/*`: a user's own API keys. Whose a key is, the service decides.

use axum::{Json, extract::State};
use nexus_proto::usage::v1 as usage;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::{App, auth::User, body::Body, convert, error::Error, format, query::Params};

/// Keys the service gives at once.
const PAGE_SIZE: i32 = 100;
/// Pages an answer is made of, at most.
const MAX_PAGES: usize = 10;

/// A key with its secret, which is shown here only.
#[derive(Serialize, ToSchema)]
pub(super) struct Generated {
    key_id: String,
    key: String,
    name: String,
    scopes: Vec<String>,
    test_mode: bool,
    #[schema(format = DateTime)]
    created_at: String,
}

impl Generated {
    fn of(key: Option<usage::ApiKey>, secret: String) -> Result<Self, Error> {
        let key = required(key)?;
        Ok(Self {
            created_at: created_at(&key)?,
            key_id: key.key_id,
            key: secret,
            name: key.name,
            scopes: key.scopes,
            test_mode: key.test_mode,
        })
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct GenerateRequest {
    /// For people.
    #[schema(min_length = 1, max_length = 100, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    name: String,
    /// What the key may do over gRPC; none: everything that a key may.
    #[schema(max_items = 32)]
    scopes: Option<Vec<KeyScope>>,
    /// Whether its calls are metered apart, never limited or billed.
    #[schema(rename = "testMode", default = false)]
    test_mode: Option<bool>,
    /// A repeat returns the first answer.
    #[schema(format = Uuid)]
    request_id: Option<String>,
}

/// A scope of a key, such as `usage.write`.
#[derive(ToSchema)]
#[schema(min_length = 1, max_length = 100, pattern = "^[a-z0-9_.:-]+$")]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct KeyScope(String);

/// Make a key
///
/// Its secret is in this answer alone.
#[utoipa::path(post, path = "/api/keys/generate", tag = "keys", request_body = GenerateRequest, responses(
    (status = 200, body = Generated, description = "The key"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn generate(
    State(app): State<App>,
    user: User,
    mut body: Body,
) -> Result<Json<Generated>, Error> {
    let request = usage::CreateApiKeyRequest {
        eco_id: String::new(),
        name: body.text("name"),
        scopes: body.texts("scopes"),
        // As the contract has it, and as our answers spell it.
        test_mode: body.flag("testMode") | body.flag("test_mode"),
        request_id: body.request_id(),
    };
    body.finish()?;
    let made = app.backend.create_api_key(&user, request).await?;
    Ok(Json(Generated::of(made.api_key, made.key)?))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Keys {
    keys: Vec<Key>,
    next_page_token: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Key {
    id: String,
    name: String,
    scopes: Vec<String>,
    status: &'static str,
    test_mode: bool,
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
}

impl TryFrom<usage::ApiKey> for Key {
    type Error = Error;

    fn try_from(key: usage::ApiKey) -> Result<Self, Error> {
        let last_used = convert::optional_time("last_used_time", key.last_used_time.as_ref())?;
        Ok(Self {
            status: convert::key_status_word(key.status())?,
            last_used_at: last_used.map(format::time),
            created_at: created_at(&key)?,
            id: key.key_id,
            name: key.name,
            scopes: key.scopes,
            test_mode: key.test_mode,
        })
    }
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `Params` reads")]
pub(super) struct ListParams {
    /// `next_page_token` of the answer before.
    page_token: Option<String>,
}

/// The account's keys
///
/// All of them, as clients expect who know no pages; only beyond a thousand the answer goes on.
#[utoipa::path(get, path = "/api/keys/list", tag = "keys", params(ListParams), responses(
    (status = 200, body = Keys, description = "The keys without their secrets, newest first"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn list(
    State(app): State<App>,
    user: User,
    mut params: Params,
) -> Result<Json<Keys>, Error> {
    let mut page_token = params.page_token();
    params.finish()?;
    let mut keys = Vec::new();
    for _ in 0..MAX_PAGES {
        let request = usage::ListApiKeysRequest { eco_id: String::new(), page_size: PAGE_SIZE, page_token };
        let page = app.backend.api_keys(&user, request).await?;
        keys.extend(page.api_keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(Json(Keys {
        keys: keys.into_iter().map(Key::try_from).collect::<Result<_, _>>()?,
        next_page_token: Some(page_token).filter(|token| !token.is_empty()),
    }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Revoked {
    message: &'static str,
    key_id: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct RevokeRequest {
    #[schema(pattern = "^eco_api_[0-9A-Za-z]{22}$")]
    key_id: String,
}

/// Revoke a key
///
/// For good: every replica refuses it within a second.
#[utoipa::path(post, path = "/api/keys/revoke", tag = "keys", request_body = RevokeRequest, responses(
    (status = 200, body = Revoked, description = "It is revoked"),
    (status = 404, description = "The account has no such key"),
))]
pub(super) async fn revoke(
    State(app): State<App>,
    user: User,
    mut body: Body,
) -> Result<Json<Revoked>, Error> {
    let request = usage::RevokeApiKeyRequest { key_id: body.text("key_id") };
    body.finish()?;
    let revoked = app.backend.revoke_api_key(&user, request).await?;
    Ok(Json(Revoked { message: "API key revoked", key_id: required(revoked.api_key)?.key_id }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Rotated {
    #[serde(flatten)]
    key: Generated,
    #[schema(format = DateTime)]
    previous_expires_at: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `Body` reads")]
struct RotateRequest {
    #[schema(pattern = "^eco_api_[0-9A-Za-z]{22}$")]
    key_id: String,
    /// How long the old secret stays valid, in milliseconds.
    #[schema(minimum = 0, maximum = 2592000000_i64, default = 86400000)]
    grace_period_ms: Option<i64>,
    /// A repeat returns the first answer.
    #[schema(format = Uuid)]
    request_id: Option<String>,
}

/// Give a key a new secret
#[utoipa::path(post, path = "/api/keys/rotate", tag = "keys", request_body = RotateRequest, responses(
    (status = 200, body = Rotated, description = "The key with its new secret"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account has no such key"),
    (status = 409, description = "The key is revoked, or too many old secrets are valid"),
))]
pub(super) async fn rotate(
    State(app): State<App>,
    user: User,
    mut body: Body,
) -> Result<Json<Rotated>, Error> {
    let request = usage::RotateApiKeyRequest {
        key_id: body.text("key_id"),
        grace_period_ms: body.number("grace_period_ms"),
        request_id: body.request_id(),
    };
    body.finish()?;
    let rotated = app.backend.rotate_api_key(&user, request).await?;
    let expires = convert::required_time("previous_expire_time", rotated.previous_expire_time.as_ref())?;
    Ok(Json(Rotated {
        key: Generated::of(rotated.api_key, rotated.key)?,
        previous_expires_at: format::time(expires),
    }))
}

fn required(key: Option<usage::ApiKey>) -> Result<usage::ApiKey, Error> {
    key.ok_or_else(|| Error::Internal("the service left out api_key".to_owned()))
}

fn created_at(key: &usage::ApiKey) -> Result<String, Error> {
    convert::required_time("create_time", key.create_time.as_ref()).map(format::time)
}
