//! Reads whose answer a client has already: `ETag` over the body, and 304 where `If-None-Match` names it.

use std::collections::BTreeMap;

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY},
};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// A tag is of one representation: one that is compressed has another, which ends so.
const ENCODINGS: [&str; 2] = ["gzip", "zstd"];

/// The member of a body that says when it was made.
const TIME: &str = "timestamp";

/// Around routes that read. Their answers are whole in memory, and belong to who asked.
pub async fn conditional(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = request.headers().clone();
    let response = next.run(request).await;
    if !is_read || response.status() != StatusCode::OK || !is_json(response.headers()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = match to_bytes(body, usize::MAX).await {
        Ok(body) => body,
        Err(error) => return Error::Internal(format!("reading an answer: {error}")).into_response(),
    };
    let tag = Tag::of(&body);
    parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    parts.headers.insert(VARY, HeaderValue::from_static("authorization, accept"));
    if let Some(held) = held(&known, &tag) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.insert(ETAG, held);
        parts.headers.remove(CONTENT_TYPE);
        parts.headers.remove(CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    parts.headers.insert(ETAG, tag.quoted());
    Response::from_parts(parts, Body::from(body))
}

/// The name of a body. One that says when it was made is named without that: it says the same as the one before, and is
/// not the same byte for byte, so its tag is a weak one.
struct Tag {
    opaque: String,
    weak: bool,
}

impl Tag {
    fn of(body: &[u8]) -> Self {
        let timeless = without_time(body);
        let digest = Sha256::digest(timeless.as_deref().unwrap_or(body));
        Self { opaque: format!("{digest:x}")[..32].to_owned(), weak: timeless.is_some() }
    }

    fn quoted(&self) -> HeaderValue {
        quoted(&self.opaque, self.weak)
    }
}

/// The object without its `timestamp`; `None`: it has none.
fn without_time(body: &[u8]) -> Option<Vec<u8>> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    members.remove(TIME)?;
    serde_json::to_vec(&members).ok()
}

/// Names the representation that is sent: compressed, it is another one.
pub async fn name_encoded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    let tag = headers.get(ETAG).and_then(|value| value.to_str().ok());
    if let (Some(encoding), Some(tag)) = (encoding, tag) {
        let (weak, opaque) = tag.strip_prefix("W/").map_or((false, tag), |opaque| (true, opaque));
        let tag = quoted(&format!("{}-{encoding}", opaque.trim_matches('"')), weak);
        headers.insert(ETAG, tag);
    }
    response
}

/// The tag that the client has of this body, in whichever encoding, as it is to be told again.
fn held(headers: &HeaderMap, tag: &Tag) -> Option<HeaderValue> {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).find_map(|item| {
        let item = item.trim();
        if item == "*" {
            return Some(tag.quoted());
        }
        let opaque = item.strip_prefix("W/").unwrap_or(item).strip_prefix('"')?.strip_suffix('"')?;
        let same = match opaque.split_once('-') {
            None => opaque == tag.opaque,
            Some((of, encoding)) => of == tag.opaque && ENCODINGS.contains(&encoding),
        };
        same.then(|| quoted(opaque, tag.weak))
    })
}

fn quoted(opaque: &str, weak: bool) -> HeaderValue {
    let weak = if weak { "W/" } else { "" };
    HeaderValue::try_from(format!("{weak}\"{opaque}\"")).expect("hex digits and a word")
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_held_in_each_encoding_and_nothing_else_is() {
        let held = |list: &str| {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, list.parse().expect("a value"))]);
            let tag = Tag { opaque: "ab".to_owned(), weak: false };
            held(&headers, &tag).and_then(|tag| tag.to_str().map(str::to_owned).ok())
        };
        for (list, told) in [
            ("\"ab\"", "\"ab\""),
            ("\"x\", W/\"ab\"", "\"ab\""),
            ("\"ab-gzip\"", "\"ab-gzip\""),
            ("\"ab-zstd\",\"ab\"", "\"ab-zstd\""),
            ("*", "\"ab\""),
        ] {
            assert_eq!(held(list).as_deref(), Some(told), "{list}");
        }
        for other in ["", "ab", "\"abc\"", "\"ab-br\"", "\"AB\"", "\"ab", "\"\""] {
            assert_eq!(held(other), None, "{other}");
        }
    }

    #[test]
    fn when_a_body_was_made_is_no_part_of_its_name() {
        let tag = |body: &str| Tag::of(body.as_bytes()).quoted();
        let made = |at: &str| tag(&format!(r#"{{"calls":1,"timestamp":"{at}"}}"#));
        assert_eq!(made("2026-12-01T00:00:00Z"), made("2026-12-01T00:00:01Z"));
        assert!(made("2026-12-01T00:00:00Z").as_bytes().starts_with(b"W/\""));
        assert_ne!(made("2026-12-01T00:00:00Z"), tag(r#"{"calls":2,"timestamp":"2026-12-01T00:00:00Z"}"#));
        assert!(!tag(r#"{"calls":1}"#).as_bytes().starts_with(b"W/"));
        assert_ne!(tag(r#"[{"timestamp":1}]"#), tag(r#"[{"timestamp":2}]"#), "of a member of it, it is");
    }
}
