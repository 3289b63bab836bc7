//! Secret keys, as bearer token or as the user of basic authentication.

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::SecretKey;
use crate::http::error::ApiError;

/// The API key of a request.
///
/// # Errors
/// 401, when there is none or it is not accepted.
pub(crate) fn authenticate(headers: &HeaderMap, accepted: Option<&SecretKey>) -> Result<String, ApiError> {
    let Some(key) = given_key(headers) else {
        return Err(unauthorized(
            "No API key was given. Set the Authorization header to 'Bearer YOUR_SECRET_KEY'.",
        ));
    };
    let known = match accepted {
        Some(accepted) => accepted.matches(&key),
        None => key.len() > SecretKey::PREFIX.len() && key.starts_with(SecretKey::PREFIX),
    };
    if known { Ok(key) } else { Err(unauthorized(format!("Invalid API Key provided: {}", masked(&key)))) }
}

fn given_key(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    let key = if scheme.eq_ignore_ascii_case("bearer") {
        credentials.trim().to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
        decoded.split_once(':').map_or(decoded.as_str(), |(user, _)| user).to_owned()
    } else {
        return None;
    };
    Some(key).filter(|key| !key.is_empty())
}

fn unauthorized(message: impl Into<Box<str>>) -> ApiError {
    ApiError { executed: false, ..ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message) }
}

/// The beginning and end only: answers end up in logs.
fn masked(key: &str) -> String {
    let letters: Vec<char> = key.chars().collect();
    if letters.len() < 16 {
        return "*".repeat(letters.len());
    }
    let head: String = letters.iter().take(8).collect();
    let tail: String = letters.iter().skip(letters.len() - 4).collect();
    format!("{head}{}{tail}", "*".repeat(letters.len() - 12))
}
