//! Idempotency keys: an answer is kept per API key and idempotency key for 24 hours.

use std::collections::HashSet;
use std::sync::Mutex;

use axum::http::StatusCode;
use sha2::{Digest as _, Sha256};

use crate::http::error::ApiError;
use crate::http::lock;
use crate::state::{KeySlot, StoredAnswer};

const MAX_LENGTH: usize = 255;

/// The keys of the requests under way.
#[derive(Default)]
pub(crate) struct KeysInUse {
    slots: Mutex<HashSet<KeySlot>>,
}

/// A key that is in use until this is dropped.
pub(crate) struct KeyInUse<'a> {
    keys: &'a KeysInUse,
    pub(crate) slot: KeySlot,
}

pub(crate) fn slot(api_key: &str, key: &str) -> Result<KeySlot, ApiError> {
    if key.is_empty() || key.chars().count() > MAX_LENGTH {
        let message = format!("An idempotency key has 1 to {MAX_LENGTH} characters.");
        let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        return Err(ApiError { executed: false, ..error });
    }
    let api_key_digest = format!("{:x}", Sha256::digest(api_key));
    Ok(KeySlot { api_key_digest, key: key.to_owned() })
}

impl KeysInUse {
    /// # Errors
    /// 409, when another request with the key is under way.
    pub(crate) fn acquire(&self, slot: KeySlot) -> Result<KeyInUse<'_>, ApiError> {
        if lock(&self.slots).insert(slot.clone()) {
            return Ok(KeyInUse { keys: self, slot });
        }
        let message = format!(
            "Another request with the idempotency key '{}' is still in progress. Try again shortly.",
            slot.key
        );
        let error =
            ApiError::new(StatusCode::CONFLICT, "idempotency_error", message).code("idempotency_key_in_use");
        Err(ApiError { executed: false, ..error })
    }
}

impl Drop for KeyInUse<'_> {
    fn drop(&mut self) {
        lock(&self.keys.slots).remove(&self.slot);
    }
}

/// # Errors
/// 400, when the stored answer is to another request.
pub(crate) fn check_same_request(stored: &StoredAnswer, fingerprint: &str) -> Result<(), ApiError> {
    if stored.fingerprint == fingerprint {
        return Ok(());
    }
    let message = format!(
        "The idempotency key '{}' was first used with another endpoint or other parameters. Use \
         another key for another request.",
        stored.slot.key
    );
    let error = ApiError::new(StatusCode::BAD_REQUEST, "idempotency_error", message);
    Err(ApiError { executed: false, ..error })
}
