//! `/api/keys/*`: a user's own API keys. Whose a key is, the service decides.

use axum::{Json, extract::State};
use nexus_proto::usage::v1 as usage;
use serde::Serialize;

use crate::{App, auth::User, body::Body, convert, error::Error, format, query::Params};

/// Keys the service gives at once.
const PAGE_SIZE: i32 = 100;
/// Pages an answer is made of, at most.
const MAX_PAGES: usize = 10;

/// A key with its secret, which is shown here only.
#[derive(Serialize)]
pub(super) struct Generated {
    key_id: String,
    key: String,
    name: String,
    scopes: Vec<String>,
    test_mode: bool,
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
        request_id: body.text("request_id"),
    };
    body.finish()?;
    let made = app.backend.create_api_key(&user, request).await?;
    Ok(Json(Generated::of(made.api_key, made.key)?))
}

#[derive(Serialize)]
pub(super) struct Keys {
    keys: Vec<Key>,
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Key {
    id: String,
    name: String,
    scopes: Vec<String>,
    status: &'static str,
    test_mode: bool,
    last_used_at: Option<String>,
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

/// All keys, as clients expect who know no pages; only beyond a thousand the answer goes on.
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

#[derive(Serialize)]
pub(super) struct Revoked {
    message: &'static str,
    key_id: String,
}

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

#[derive(Serialize)]
pub(super) struct Rotated {
    #[serde(flatten)]
    key: Generated,
    previous_expires_at: String,
}

pub(super) async fn rotate(
    State(app): State<App>,
    user: User,
    mut body: Body,
) -> Result<Json<Rotated>, Error> {
    let request = usage::RotateApiKeyRequest {
        key_id: body.text("key_id"),
        grace_period_ms: body.number("grace_period_ms"),
        request_id: body.text("request_id"),
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
