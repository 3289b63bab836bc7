//! Requests to URLs that somebody else has named: the only way out of this service but for Stripe.
//!
//! A name is looked up once for each request, its addresses are checked, and the connection is made to one of those
//! that passed: between the check and the use there is no second look-up, whose answer could be another. Connections
//! are not kept, redirects not followed, and of an answer only the beginning is read.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_rustls::ConfigBuilderExt;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, crypto::ring, pki_types::ServerName},
};

use crate::domain::webhook::{
    delivery::Failure,
    url::{Policy, Target},
};

/// Bytes of an answer that are read; what it says beyond its status is of no use here.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// And for how long.
const BODY_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of its head.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;

/// A connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Looks a name up.
pub type Resolver = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The system's resolver.
pub fn system_resolver() -> Resolver {
    Arc::new(|host| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// Trust in the certificates that browsers trust.
pub fn public_roots() -> Result<ClientConfig, tokio_rustls::rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_webpki_roots().with_no_client_auth())
}

/// A client.
#[derive(Clone)]
pub struct Client {
    policy: Policy,
    resolver: Resolver,
    tls: TlsConnector,
    timeout: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("policy", &self.policy)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// `timeout` is for everything up to the answer's head, which decides.
    pub fn new(policy: Policy, resolver: Resolver, tls: ClientConfig, timeout: Duration) -> Self {
        Self { policy, resolver, tls: TlsConnector::from(Arc::new(tls)), timeout }
    }

    /// Posts JSON, once; the status of an answer that is a success.
    pub async fn post(
        &self,
        url: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: String,
    ) -> Result<u16, Failure> {
        let deadline = Instant::now() + self.timeout;
        let target = self.policy.target(url).map_err(|_| Failure::Url)?;
        let request = request(&target, headers, body).map_err(|_| Failure::Url)?;
        let stream =
            timeout_at(deadline, self.open(&target, deadline)).await.unwrap_or(Err(Failure::Timeout))?;
        send(stream, request, deadline).await
    }

    async fn open(&self, target: &Target, deadline: Instant) -> Result<Box<dyn Stream>, Failure> {
        let stream = self.connect(target, deadline).await?;
        if !target.tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(target.host.clone()).map_err(|_| Failure::Url)?;
        Ok(Box::new(self.tls.connect(name, stream).await.map_err(|_| Failure::Tls)?))
    }

    /// Connects to the first address that may be reached and takes the connection. One that does not answer leaves
    /// time for the others.
    async fn connect(&self, target: &Target, deadline: Instant) -> Result<TcpStream, Failure> {
        let found = match target.host.parse() {
            Ok(address) => vec![address],
            Err(_) => (self.resolver)(target.host.clone()).await.map_err(|_| Failure::Name)?,
        };
        if found.is_empty() {
            return Err(Failure::Name);
        }
        let permitted = found.into_iter().filter(|address| self.policy.reachable.permits(*address));
        let permitted: Vec<IpAddr> = permitted.take(MAX_ADDRESSES).collect();
        let mut failure = Failure::Address;
        for (address, left) in permitted.iter().zip((1..=permitted.len() as u32).rev()) {
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(share, TcpStream::connect(SocketAddr::new(*address, target.port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(_)) => failure = Failure::Connect,
                Err(_) => failure = Failure::Timeout,
            }
        }
        Err(failure)
    }
}

fn request(
    target: &Target,
    headers: &[(HeaderName, HeaderValue)],
    body: String,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&target.path)
        .header(HOST, &target.authority)
        .header(USER_AGENT, concat!("nexus/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    request.headers_mut().extend(headers.iter().cloned());
    Ok(request)
}

/// One request over a connection of its own, which is worked on here and nowhere else: it ends with its caller.
async fn send(
    stream: Box<dyn Stream>,
    request: Request<Full<Bytes>>,
    deadline: Instant,
) -> Result<u16, Failure> {
    let mut http = http1::Builder::new();
    let handshake = http.max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| Failure::NoAnswer)?;
    let exchange = async {
        let answer = timeout_at(deadline, sender.send_request(request)).await;
        judge(answer.map_err(|_| Failure::Timeout)?.map_err(|_| Failure::NoAnswer)?).await
    };
    // What goes wrong with the connection is told to the exchange as well, which may have the whole answer by then.
    let at_work = async {
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = exchange => result,
        () = at_work => Err(Failure::NoAnswer),
    }
}

/// The head decides: a receiver that answers with a success has the message, however its body goes on. That is read
/// for a moment, so that who writes it is not cut off in the middle.
async fn judge(response: Response<Incoming>) -> Result<u16, Failure> {
    let (parts, body) = response.into_parts();
    let status = parts.status.as_u16();
    if !parts.status.is_success() {
        return Err(Failure::Status { status, retry_after: retry_after(&parts.headers) });
    }
    drop(timeout(BODY_WITHIN, Limited::new(body, MAX_ANSWER_BYTES).collect()).await);
    Ok(status)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
