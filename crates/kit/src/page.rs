//! Lists: page sizes are coerced down, and page tokens are opaque and bound to the filter they were made
//! for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, Datelike, Utc};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// A page token that is not ours, or belongs to another filter or order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a token from this list with the same filter and order")]
pub struct BadToken;

/// A page size: 0 is the default, above the maximum is the maximum, negative is refused.
pub fn size(requested: i32, default: i32, maximum: i32) -> Result<i64, &'static str> {
    match requested {
        i32::MIN..0 => Err("must not be negative"),
        0 => Ok(i64::from(default)),
        n => Ok(i64::from(n.min(maximum))),
    }
}

/// Cuts a page that was read one row too long, and says after which row the next begins, if there is one.
pub fn cut<T, C>(rows: &mut Vec<T>, size: i64, cursor: impl Fn(&T) -> C) -> Option<C> {
    if (rows.len() as i64) <= size {
        return None;
    }
    rows.truncate(size as usize);
    rows.last().map(cursor)
}

/// A token that continues after `cursor` in a list with this filter.
pub fn encode<C: Serialize>(filter: &impl Serialize, cursor: &C) -> String {
    let token = serde_json::to_vec(&(digest(filter), cursor)).expect("plain data serialises");
    BASE64.encode(token)
}

/// The cursor of a token; `None` for the first page.
pub fn decode<C: DeserializeOwned>(filter: &impl Serialize, token: &str) -> Result<Option<C>, BadToken> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64.decode(token).map_err(|_| BadToken)?;
    let (made_for, cursor): (String, C) = serde_json::from_slice(&bytes).map_err(|_| BadToken)?;
    if made_for == digest(filter) { Ok(Some(cursor)) } else { Err(BadToken) }
}

/// The cursor of a token in a list ordered by time. A token is text from outside: a time that no row has, and
/// that the database could not even compare with, makes it a bad one.
pub fn decode_timed<C: DeserializeOwned>(
    filter: &impl Serialize,
    token: &str,
    time: impl Fn(&C) -> DateTime<Utc>,
) -> Result<Option<C>, BadToken> {
    let cursor = decode(filter, token)?;
    let possible = cursor.as_ref().is_none_or(|cursor| (1..=9999).contains(&time(cursor).year()));
    if possible { Ok(cursor) } else { Err(BadToken) }
}

fn digest(filter: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(filter).expect("plain data serialises");
    BASE64.encode(&Sha256::digest(bytes)[..9])
}
