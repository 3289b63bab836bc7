//! Reads whose answer a client has already: `ETag` over the body, and 304 where `If-None-Match` names it.

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
use sha2::{Digest, Sha256};

use crate::error::Error;

/// A tag is of one representation: one that is compressed has another, which ends so.
const ENCODINGS: [&str; 2] = ["gzip", "zstd"];

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
    let tag = format!("{:x}", Sha256::digest(&body))[..32].to_owned();
    parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    parts.headers.insert(VARY, HeaderValue::from_static("authorization, accept"));
    if let Some(held) = held(&known, &tag) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.insert(ETAG, held);
        parts.headers.remove(CONTENT_TYPE);
        parts.headers.remove(CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    parts.headers.insert(ETAG, quoted(&tag));
    Response::from_parts(parts, Body::from(body))
}

/// Names the representation that is sent: compressed, it is another one.
pub async fn name_encoded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    let tag = headers.get(ETAG).and_then(|value| value.to_str().ok());
    if let (Some(encoding), Some(tag)) = (encoding, tag) {
        let tag = quoted(&format!("{}-{encoding}", tag.trim_matches('"')));
        headers.insert(ETAG, tag);
    }
    response
}

/// The tag that the client has of this body, in whichever encoding, as it is to be told again.
fn held(headers: &HeaderMap, tag: &str) -> Option<HeaderValue> {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).find_map(|item| {
        let item = item.trim();
        if item == "*" {
            return Some(quoted(tag));
        }
        let opaque = item.strip_prefix("W/").unwrap_or(item).strip_prefix('"')?.strip_suffix('"')?;
        let same = match opaque.split_once('-') {
            None => opaque == tag,
            Some((of, encoding)) => of == tag && ENCODINGS.contains(&encoding),
        };
        same.then(|| quoted(opaque))
    })
}

fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::try_from(format!("\"{tag}\"")).expect("hex digits and a word")
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
            held(&headers, "ab").and_then(|tag| tag.to_str().map(str::to_owned).ok())
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
}
