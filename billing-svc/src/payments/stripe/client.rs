//! Stripe's API over HTTP: a client for async-stripe's requests that keeps connections, sends our
//! idempotency keys, and whose errors say what the headers said.

use std::{
    fmt,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::TryFutureExt;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Builder, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use nexus_kit::telemetry;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use stripe_client_core::{CustomizedStripeRequest, StripeClient, StripeClientErr, StripeMethod};

use crate::config::StripeArgs;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const STRIPE_VERSION: HeaderName = HeaderName::from_static("stripe-version");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Less than the minute after which load balancers drop idle connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A setting of Stripe's that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StripeConfigError {
    /// The base is no URL, or sends a live key in clear text.
    #[error("STRIPE_API_BASE (--stripe-api-base): {0}")]
    Base(&'static str),
    /// No secret key, or one that cannot be sent.
    #[error("STRIPE_SECRET_KEY (--stripe-secret-key) must be a secret key: it begins with sk_ or rk_")]
    Key,
}

/// The client. Its `Debug` form has no secret.
#[derive(Clone)]
pub struct HttpClient {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: HeaderValue,
    timeout: Duration,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No answer: the connection failed or was cut. Stripe may or may not have done it.
    #[error("no answer from Stripe: {0}")]
    Connection(String),
    /// No answer in time. Stripe may or may not have done it.
    #[error("no answer from Stripe in time")]
    Timeout,
    /// A listing with more pages than are looked through.
    #[error("a listing at Stripe took too long")]
    TooLong,
    /// A request that cannot be sent: nothing was.
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
    /// An answer that is no object of Stripe's.
    #[error("an answer from Stripe that cannot be read: {0}")]
    Unreadable(String),
    /// Stripe answered with an error.
    #[error("Stripe answered {}: {}", .0.status, .0.error.message.as_deref().unwrap_or("no message"))]
    Answer(Box<ErrorAnswer>),
}

/// An error that Stripe answered with.
#[derive(Debug, Clone)]
pub struct ErrorAnswer {
    /// HTTP status.
    pub status: u16,
    /// When to try again, if Stripe says so.
    pub retry_after: Option<Duration>,
    /// Whether it is the stored answer of an earlier request with the same key.
    pub replayed: bool,
    /// Whether to try again, if Stripe says so.
    pub should_retry: Option<bool>,
    /// Stripe's name of the request, for its support.
    pub request_id: Option<String>,
    /// The error itself.
    pub error: ErrorObject,
}

/// `error` in the body of an error answer.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ErrorObject {
    /// Kind, e.g. `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Code, e.g. `resource_missing`.
    pub code: Option<String>,
    /// Sentence.
    pub message: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorObject,
}

impl StripeClientErr for RequestError {
    fn deserialize_err(message: impl fmt::Display) -> Self {
        Self::Unreadable(message.to_string())
    }
}

impl HttpClient {
    /// Reads the settings; connects when first used.
    pub fn new(args: &StripeArgs) -> Result<Self, StripeConfigError> {
        let connector =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().enable_http2();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let http = connections(PING_INTERVAL, PING_TIMEOUT).build(connector.wrap_connector(tcp));
        Ok(Self {
            http,
            base: base(args)?,
            authorization: authorization(&args.stripe_secret_key)?,
            timeout: args.stripe_timeout,
        })
    }

    async fn send(&self, request: CustomizedStripeRequest) -> Result<(Bytes, bool), RequestError> {
        let (request, overrides) = request.into_pieces();
        let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
        let mut http = Request::new(Full::new(Bytes::from(request.body.unwrap_or_default())));
        *http.method_mut() = match request.method {
            StripeMethod::Get => Method::GET,
            StripeMethod::Post => Method::POST,
            StripeMethod::Delete => Method::DELETE,
        };
        *http.uri_mut() = format!("{}v1{}{query}", self.base, request.path)
            .parse()
            .map_err(|_| RequestError::Unsendable("the request has no valid URL".to_owned()))?;
        let headers = http.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("nexus/", env!("CARGO_PKG_VERSION"))));
        headers.insert(STRIPE_VERSION, header(stripe_client_core::VERSION.as_str())?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        if let Some(key) = overrides.request_strategy.and_then(|strategy| strategy.get_key()) {
            headers.insert(IDEMPOTENCY_KEY, header(key.as_str())?);
        }
        telemetry::propagate_trace(headers);
        let exchange = async {
            let response = self.http.request(http).await.map_err(|e| RequestError::Connection(chain(&e)))?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| RequestError::Connection(chain(&e)))?.to_bytes();
            if parts.status.is_success() {
                Ok((body, is_replayed(&parts.headers)))
            } else {
                Err(RequestError::Answer(Box::new(error_answer(
                    parts.status.as_u16(),
                    &parts.headers,
                    &body,
                ))))
            }
        };
        let timeout = overrides.timeout.unwrap_or(self.timeout);
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(RequestError::Timeout))
    }
}

impl StripeClient for HttpClient {
    type Err = RequestError;

    /// Sends once; whether to send again is the caller's decision.
    fn execute(
        &self,
        request: CustomizedStripeRequest,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send {
        self.send(request).map_ok(|(body, _)| body)
    }
}

/// A client for one request, which notes whether that was answered by the stored answer of an earlier one.
pub(super) struct Noting<'a> {
    client: &'a HttpClient,
    replayed: AtomicBool,
}

impl<'a> Noting<'a> {
    pub(super) fn of(client: &'a HttpClient) -> Self {
        Self { client, replayed: AtomicBool::new(false) }
    }

    pub(super) fn replayed(&self) -> bool {
        self.replayed.load(Ordering::Relaxed)
    }
}

impl StripeClient for Noting<'_> {
    type Err = RequestError;

    async fn execute(&self, request: CustomizedStripeRequest) -> Result<Bytes, RequestError> {
        let (body, replayed) = self.client.send(request).await?;
        self.replayed.store(replayed, Ordering::Relaxed);
        Ok(body)
    }
}

/// How connections are kept: a dead one is found out by a ping and not by the requests sent over it.
fn connections(ping_interval: Duration, ping_timeout: Duration) -> Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_keep_alive_interval(ping_interval)
        .http2_keep_alive_timeout(ping_timeout);
    builder
}

fn base(args: &StripeArgs) -> Result<String, StripeConfigError> {
    let bad = |_| StripeConfigError::Base("must be a URL such as https://api.stripe.com/");
    let uri: Uri = args.stripe_api_base.parse().map_err(bad)?;
    let secret = args.stripe_secret_key.expose_secret();
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if secret.starts_with("sk_live_") || secret.starts_with("rk_live_") => {
            return Err(StripeConfigError::Base("must be https:// with a live key"));
        }
        Some("http") => {}
        _ => return Err(StripeConfigError::Base("must begin with https:// (or http:// for a stand-in)")),
    }
    if uri.query().is_some() {
        return Err(StripeConfigError::Base("must have no query"));
    }
    Ok(format!("{}/", args.stripe_api_base.trim_end_matches('/')))
}

fn authorization(secret: &SecretString) -> Result<HeaderValue, StripeConfigError> {
    let secret = secret.expose_secret();
    if !(secret.starts_with("sk_") || secret.starts_with("rk_")) {
        return Err(StripeConfigError::Key);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {secret}")).map_err(|_| StripeConfigError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

fn header(text: &str) -> Result<HeaderValue, RequestError> {
    HeaderValue::from_str(text)
        .map_err(|_| RequestError::Unsendable("the request has a header that cannot be sent".to_owned()))
}

fn error_answer(status: u16, headers: &HeaderMap, body: &[u8]) -> ErrorAnswer {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    ErrorAnswer {
        status,
        retry_after: text(RETRY_AFTER.as_str()).and_then(|s| s.parse().ok()).map(Duration::from_secs),
        replayed: is_replayed(headers),
        should_retry: text("stripe-should-retry").and_then(|s| s.parse().ok()),
        request_id: text("request-id").map(str::to_owned),
        // A proxy on the way may answer with something else: then the status alone speaks.
        error: serde_json::from_slice::<ErrorBody>(body).map(|b| b.error).unwrap_or_default(),
    }
}

fn is_replayed(headers: &HeaderMap) -> bool {
    headers.get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// An error with its causes: the outermost of hyper's says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const PREFACE: usize = 24;
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: u8 = 6;
    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_pinged_and_given_up() -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let request = Request::get(format!("http://{}/", listener.local_addr()?)).body(Full::default())?;
        let client: Client<_, Full<Bytes>> =
            connections(SOON, SOON).http2_only(true).build(HttpConnector::new());
        let silent = async {
            let mut stream = listener.accept().await?.0;
            stream.write_all(&EMPTY_SETTINGS).await?;
            stream.read_exact(&mut [0; PREFACE]).await?;
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await?;
                if head[3] == PING {
                    return anyhow::Ok(stream);
                }
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                stream.read_exact(&mut vec![0; length as usize]).await?;
            }
        };
        // The stream stays open: only the missing answer to the ping ends the request.
        let (answer, stream) = tokio::join!(client.request(request), silent);
        let _open = stream?;
        assert!(answer.is_err());
        Ok(())
    }
}
