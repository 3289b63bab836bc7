//! Requests and answers about API keys, and who may change which.

use nexus_core::id::{ApiKeyText, EcoId, IdError, is_api_key_id};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::timestamp,
    page, status,
    validate::Violations,
};
use nexus_proto::usage::v1 as pb;
use secrecy::{ExposeSecret, SecretString};
use tonic::Status;

use crate::{
    app::{create_api_key::NewKey, list_api_keys::Cursor, rotate_api_key::Rotation},
    domain::api_key::{self, ApiKey},
};

const MAX_NAME_CHARACTERS: usize = 100;
const MAX_SCOPES: usize = 32;
const MAX_SCOPE_BYTES: usize = 100;
const DAY_MS: i64 = 86_400_000;
const MAX_GRACE_MS: i64 = 30 * DAY_MS;

/// The account whose keys the caller may change; `None`: any account's.
pub(super) fn owner(caller: Caller) -> Result<Option<EcoId>, Status> {
    if caller.is_admin() || caller.has_scope(Scope::AccountsWrite) {
        return Ok(None);
    }
    match caller {
        Caller::User { eco_id, .. } => Ok(Some(eco_id)),
        Caller::Service { .. } | Caller::ApiKey(_) => Err(status::permission_denied(
            "this call needs a user, or a service token with the scope accounts.write",
        )),
    }
}

/// A key to make. With a request id it is derived, so that a repeat makes the same one.
pub(super) fn new_key(
    pb: pb::CreateApiKeyRequest,
    eco_id: EcoId,
    server_secret: &SecretString,
) -> Result<NewKey, Status> {
    let mut v = Violations::new();
    let length = (1..=MAX_NAME_CHARACTERS).contains(&pb.name.chars().count());
    v.require(length, "name", format!("must be 1 to {MAX_NAME_CHARACTERS} characters"));
    v.require(!pb.name.chars().any(char::is_control), "name", "must have no control characters");
    v.require(pb.scopes.len() <= MAX_SCOPES, "scopes", format!("must be at most {MAX_SCOPES}"));
    for (i, scope) in pb.scopes.iter().take(MAX_SCOPES).enumerate() {
        let word =
            scope.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_.:-".contains(&c));
        let length = (1..=MAX_SCOPE_BYTES).contains(&scope.len());
        let message = format!("must be 1 to {MAX_SCOPE_BYTES} characters of [a-z0-9_.:-]");
        v.require(word && length, &format!("scopes[{i}]"), message);
    }
    let request_id = v.optional_uuid("request_id", &pb.request_id);
    v.finish().map_err(|violations| status::invalid(&violations))?;
    let text = match request_id {
        Some(id) => ApiKeyText::derive(server_secret.expose_secret().as_bytes(), &eco_id, id),
        None => ApiKeyText::random(&mut rand::rng()),
    };
    Ok(NewKey { eco_id, name: pb.name, scopes: pb.scopes, test_mode: pb.test_mode, text })
}

/// The page of a request to list keys.
pub(super) fn key_page(
    pb: &pb::ListApiKeysRequest,
    eco_id: &EcoId,
) -> Result<(i64, Option<Cursor>), Violations> {
    let mut v = Violations::new();
    let size = v.take("page_size", page::size(pb.page_size, 50, 100));
    let after = page::decode_timed(eco_id, &pb.page_token, |cursor: &Cursor| cursor.0);
    let after = after.and_then(|after| match after {
        Some((_, key_id)) if !is_api_key_id(&key_id) => Err(page::BadToken),
        after => Ok(after),
    });
    let after = v.take("page_token", after).flatten();
    v.finish()?;
    Ok((size.unwrap_or_default(), after))
}

/// The key a request is about.
pub(super) fn key_id(text: &str) -> Result<(), Violations> {
    let mut v = Violations::new();
    v.require(is_api_key_id(text), "key_id", IdError::ApiKeyId);
    v.finish()
}

/// A rotation to do. With a request id the secret is derived, so that a repeat has the same one.
pub(super) fn rotation(
    pb: &pb::RotateApiKeyRequest,
    server_secret: &SecretString,
) -> Result<Rotation, Violations> {
    let mut v = Violations::new();
    let request_id = v.optional_uuid("request_id", &pb.request_id);
    let text = match request_id {
        Some(id) => ApiKeyText::derive_for(server_secret.expose_secret().as_bytes(), &pb.key_id, id),
        None => ApiKeyText::random_for(&pb.key_id, &mut rand::rng()),
    };
    let text = v.take("key_id", text);
    let grace_ms = pb.grace_period_ms.unwrap_or(DAY_MS);
    let fits = (0..=MAX_GRACE_MS).contains(&grace_ms);
    v.require(fits, "grace_period_ms", format!("must be 0 to {MAX_GRACE_MS}"));
    match (text, v.finish()) {
        (Some(text), Ok(())) => Ok(Rotation { text, grace_ms }),
        (_, finished) => Err(finished.expect_err("a field that is missing was said to be")),
    }
}

/// A key, without its secret.
pub(super) fn api_key(key: ApiKey) -> pb::ApiKey {
    let status = match key.status {
        api_key::Status::Active => pb::ApiKeyStatus::Active,
        api_key::Status::Revoked => pb::ApiKeyStatus::Revoked,
    };
    pb::ApiKey {
        key_id: key.key_id,
        eco_id: key.eco_id.into(),
        name: key.name,
        scopes: key.scopes,
        test_mode: key.test_mode,
        status: status.into(),
        create_time: Some(timestamp(key.created)),
        last_used_time: key.last_used.map(timestamp),
    }
}

/// Whose key it is.
pub(super) fn verified(key: ApiKey) -> pb::VerifyApiKeyResponse {
    pb::VerifyApiKeyResponse {
        eco_id: key.eco_id.into(),
        key_id: key.key_id,
        scopes: key.scopes,
        test_mode: key.test_mode,
    }
}
