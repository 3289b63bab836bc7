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
    /// `timeout` is for everything: the look-up, the connection, the whole answer.
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
        let target = self.policy.target(url).map_err(|_| Failure::Url)?;
        let exchange = self.exchange(&target, headers, body);
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or(Err(Failure::Timeout))
    }

    async fn exchange(
        &self,
        target: &Target,
        headers: &[(HeaderName, HeaderValue)],
        body: String,
    ) -> Result<u16, Failure> {
        let request = request(target, headers, body).map_err(|_| Failure::Url)?;
        let stream = self.connect(target).await?;
        if !target.tls {
            return send(stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone()).map_err(|_| Failure::Url)?;
        send(self.tls.connect(name, stream).await.map_err(|_| Failure::Tls)?, request).await
    }

    /// Connects to the first address that may be reached and takes the connection.
    async fn connect(&self, target: &Target) -> Result<TcpStream, Failure> {
        let found = match target.host.parse() {
            Ok(address) => vec![address],
            Err(_) => (self.resolver)(target.host.clone()).await.map_err(|_| Failure::Name)?,
        };
        if found.is_empty() {
            return Err(Failure::Name);
        }
        let mut failure = Failure::Address;
        for address in found.into_iter().filter(|address| self.policy.reachable.permits(*address)) {
            match TcpStream::connect(SocketAddr::new(address, target.port)).await {
                Ok(stream) => return Ok(stream),
                Err(_) => failure = Failure::Connect,
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
async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<u16, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::NoAnswer)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|_| Failure::NoAnswer)?;
        judge(response).await
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

async fn judge(response: Response<Incoming>) -> Result<u16, Failure> {
    let (parts, body) = response.into_parts();
    let status = parts.status.as_u16();
    if !parts.status.is_success() {
        return Err(Failure::Status { status, retry_after: retry_after(&parts.headers) });
    }
    // A success whose body is too long or cut off is a success: the receiver has said that it has it. It is read so
    // that a receiver that writes its answer before it is done is not cut off.
    drop(Limited::new(body, MAX_ANSWER_BYTES).collect().await);
    Ok(status)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
