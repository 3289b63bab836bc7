//! Around everything, errors included: answers are compressed where that is worth it, and pages of other origins may call
//! where the settings name them.

use std::{str::FromStr, time::Duration};

use axum::{Router, middleware::map_response, response::Response};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER,
        STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE,
    },
};
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer,
        predicate::{Predicate, SizeAbove},
    },
    cors::{AllowOrigin, CorsLayer},
};

use crate::{etag, fixed::AsItIs, layer};

/// Shorter bodies grow, or gain nothing.
const WORTH_IT: u64 = 1024;
/// How long a browser may remember what it is allowed.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Types whose bodies are compressed. Pages are not among them: they hold tokens of forms beside what a request said, and
/// the length would tell of them. Nor are streams of events, which must not wait for more.
const COMPRESSED: [&str; 7] = [
    "application/json",
    "application/problem+json",
    "application/x-ndjson",
    "text/csv",
    "text/css",
    "text/javascript",
    "application/javascript",
];

/// Origins whose pages may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(Vec<HeaderValue>);

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(origin).collect::<Result<_, _>>().map(Self)
    }
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    let expected = || format!("`{text}` is not an origin such as https://app.example.com");
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority().ok_or_else(expected)?);
    // As browsers send it: nothing behind the port.
    let is_origin = ["http", "https"].contains(&scheme) && text == format!("{scheme}://{authority}");
    if !is_origin || text.contains(['@', '*']) || text.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(expected());
    }
    HeaderValue::from_str(text).map_err(|_| expected())
}

/// Puts the layers around. `secure`: browsers come over TLS, and are told to keep to it.
pub fn around(router: Router, origins: &Origins, secure: bool) -> Router {
    // The least that an encoder holds: whoever asks may leave it waiting.
    let compression = CompressionLayer::new().quality(CompressionLevel::Fastest);
    let compression = compression.compress_when(SizeAbove::new(WORTH_IT).and(is_compressed));
    let router = router.layer(compression).layer(map_response(etag::name_encoded));
    let router = if origins.0.is_empty() { router } else { router.layer(cors(origins)) };
    let router = router.layer(map_response(layer::complete));
    if secure { router.layer(map_response(keep_to_tls)) } else { router }
}

async fn keep_to_tls(mut response: Response) -> Response {
    let year = HeaderValue::from_static("max-age=31536000");
    response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, year);
    response
}

fn is_compressed(_: StatusCode, _: Version, headers: &HeaderMap, extensions: &Extensions) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    is_of_compressed_type(kind) && extensions.get::<AsItIs>().is_none()
}

fn is_of_compressed_type(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    COMPRESSED.contains(&kind)
}

/// Whether a body of this type and length is one to compress.
pub fn is_worth_packing(kind: &str, length: u64) -> bool {
    length >= WORTH_IT && is_of_compressed_type(kind)
}

/// Without cookies: who calls shows a header, which no browser adds by itself.
fn cors(origins: &Origins) -> CorsLayer {
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.0.iter().cloned()))
        .allow_methods([Method::GET, Method::POST, Method::PUT])
        .allow_headers([
            ACCEPT,
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_NONE_MATCH,
            name("grpc-timeout"),
            name("x-grpc-web"),
            name("x-request-id"),
            name("x-user-agent"),
        ])
        .expose_headers([
            CONTENT_DISPOSITION,
            ETAG,
            RETRY_AFTER,
            WWW_AUTHENTICATE,
            name("grpc-message"),
            name("grpc-status"),
            name("grpc-status-details-bin"),
            name("ratelimit"),
            name("ratelimit-policy"),
            name("x-ratelimit-limit"),
            name("x-ratelimit-remaining"),
            name("x-ratelimit-reset"),
            name("x-request-id"),
        ])
        .max_age(REMEMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_send_them() {
        let origins = |text: &str| text.parse::<Origins>().map(|origins| origins.0.len());
        assert_eq!(origins(""), Ok(0));
        assert_eq!(origins("https://app.example.com, http://localhost:3000,"), Ok(2));
        for bad in [
            "*",
            "app.example.com",
            "https://app.example.com/",
            "https://*.example.com",
            "https://app.example.com/x",
            "https://user@app.example.com",
            "https://App.example.com",
            "ftp://app.example.com",
            "null",
        ] {
            assert!(origins(bad).is_err_and(|e| e.contains("is not an origin")), "{bad}");
        }
    }
}
