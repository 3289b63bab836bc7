//! Bodies that are the same for everybody: packed once, so that nobody has a long one packed for each of many requests.

use axum::{
    body::{Body, Bytes, to_bytes},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, Request,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
};
use tokio::sync::OnceCell;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::compression::{CompressionLayer, predicate::SizeAbove};

use crate::{edge, error::Error};

/// The one we would rather send is first.
const ENCODINGS: [&str; 2] = ["zstd", "gzip"];

/// An answer that has one of these is packed as it is to be.
#[derive(Debug, Clone, Copy)]
pub struct AsItIs;

/// A body, once in memory in each form, however many answers have it.
pub struct Fixed {
    content_type: String,
    plain: Bytes,
    packed: [OnceCell<Bytes>; ENCODINGS.len()],
}

impl Fixed {
    /// Of this type.
    pub fn new(content_type: &str, plain: impl Into<Bytes>) -> Self {
        Self { content_type: content_type.to_owned(), plain: plain.into(), packed: Default::default() }
    }

    /// In the form that the request's headers ask for.
    pub async fn answer(&self, asked: &HeaderMap) -> Result<Response, Error> {
        let mut headers = HeaderMap::new();
        let content_type = HeaderValue::try_from(&self.content_type);
        let content_type = content_type.map_err(|_| Error::Internal("a type is no header".to_owned()))?;
        headers.insert(CONTENT_TYPE, content_type);
        let mut body = &self.plain;
        if edge::is_worth_packing(&self.content_type, self.plain.len() as u64) {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
            let forms = ENCODINGS.iter().zip(&self.packed);
            if let Some((encoding, packed)) = forms.into_iter().find(|(encoding, _)| takes(asked, encoding)) {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
                body = packed.get_or_try_init(|| pack(self.plain.clone(), encoding)).await?;
            }
        }
        let mut response = (headers, body.clone()).into_response();
        response.extensions_mut().insert(AsItIs);
        Ok(response)
    }
}

async fn pack(plain: Bytes, encoding: &'static str) -> Result<Bytes, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Internal(format!("packing a body: {error}"));
    let layer = CompressionLayer::new().compress_when(SizeAbove::new(0));
    let answer = layer
        .layer(service_fn(async |_: Request<()>| Ok::<_, Error>(Response::new(Body::from(plain.clone())))));
    let mut request = Request::new(());
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(encoding));
    let packed = answer.oneshot(request).await?;
    to_bytes(Body::new(packed.into_body()), usize::MAX).await.map_err(|error| failed(&error))
}

/// Whether the sender of these takes this encoding.
fn takes(headers: &HeaderMap, encoding: &str) -> bool {
    let quality = |wanted: &str| {
        let lists = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
        let mut items =
            lists.flat_map(|list| list.split(',')).map(|item| item.split_once(';').unwrap_or((item, "")));
        let (_, parameters) = items.find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))?;
        let quality = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
        Some(quality.unwrap_or_default())
    };
    quality(encoding).or_else(|| quality("*")).is_some_and(|quality| quality > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, accept.parse().expect("a value"))])
    }

    #[tokio::test]
    async fn however_many_have_a_body_it_is_packed_once() -> anyhow::Result<()> {
        let fixed = Fixed::new("text/css; charset=utf-8", "a { color: red }".repeat(1_000));
        let form = async |accept: &str| {
            let response = fixed.answer(&asking(accept)).await?;
            let encoding = response.headers().get(CONTENT_ENCODING).cloned();
            assert_eq!(response.headers()[VARY], "accept-encoding", "{accept}");
            anyhow::Ok((encoding, to_bytes(response.into_body(), usize::MAX).await?))
        };
        for (accept, told) in
            [("gzip", Some("gzip")), ("gzip, zstd", Some("zstd")), ("x-gzip", None), ("", None)]
        {
            let ((encoding, one), (_, another)) = (form(accept).await?, form(accept).await?);
            assert_eq!(encoding.as_ref().map(HeaderValue::as_bytes), told.map(str::as_bytes), "{accept}");
            assert_eq!(one.as_ptr(), another.as_ptr(), "{accept}");
            assert_eq!(one.len() < fixed.plain.len() / 2, told.is_some(), "{accept}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_gains_nothing_is_not_packed() -> anyhow::Result<()> {
        for fixed in [Fixed::new("image/png", vec![0; 10_000]), Fixed::new("text/css", "a")] {
            let response = fixed.answer(&asking("gzip")).await?;
            assert!(!response.headers().contains_key(CONTENT_ENCODING));
        }
        Ok(())
    }

    #[test]
    fn what_is_taken_is_told_by_name_or_by_none() {
        for accept in ["gzip", "br, GZIP;q=0.5", "*", "*;q=0.1, zstd", "gzip;q=1.0"] {
            assert!(takes(&asking(accept), "gzip"), "{accept}");
        }
        for accept in ["", "zstd", "gzip;q=0", "gzip; q=0.0, *", "identity", "*;q=0", "gzip;q=x"] {
            assert!(!takes(&asking(accept), "gzip"), "{accept}");
        }
    }
}
