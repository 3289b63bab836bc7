//! The HTTP server: HTTP/1.1 and HTTP/2, bounds on what a client may send and how long it may take for it, and for what it
//! is sent; TLS where configured, and a drain.

use std::{
    convert::Infallible, error::Error as StdError, io, net::IpAddr, pin::pin, sync::Arc, time::Duration,
};

use axum::Router;
use http::{Request, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use nexus_kit::{config::ServeArgs, descriptors::connection_places, serve::ServeError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    address::{Peer, Proxies},
    error::Error,
    layer::{MAX_HEADER_BYTES, MAX_HEADERS},
    per_address::{PerAddress, Taken},
    taken::{Answer, Streams, Taking},
};

type AnyError = Box<dyn StdError + Send + Sync>;

/// Longest a client may take for its TLS handshake, and for its first request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest that a connection stays without another request: longer than the 60 s that proxies keep idle ones for, which
/// would else send requests on one that ends. Over HTTP/1.1 it is for the next one's headers as well: hyper does not tell
/// whether they have begun.
const IDLE: Duration = Duration::from_secs(75);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// What may be under way to a server that does not read it, of a request and of a connection: a mebibyte comes in some
/// round trips.
const WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Names and values of all headers, with what is not counted to them.
const MAX_HEAD: usize = MAX_HEADER_BYTES * 3 / 2;
/// Connections at once: each may take 110 KiB before its first request (`docs/operations.md`).
const CONNECTIONS: u32 = 3_072;
/// An address has one in so many of them: 128, of which a browser takes one over HTTP/2 and six over HTTP/1.1.
const ADDRESS: u32 = 24;
/// The last one in so many are for proxies that are trusted.
const PROXIES: u32 = 4;
/// After an accept that failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Places of connections.
pub struct Connections {
    /// Of all servers of the process.
    files: Arc<Semaphore>,
    places: PerAddress,
    proxies: Proxies,
}

impl Connections {
    /// Behind proxies of ours are many clients: they have what they like.
    pub fn new(proxies: Proxies) -> Self {
        Self::of(CONNECTIONS, connection_places(), proxies)
    }

    /// So many, and no more than there are files for.
    fn of(most: u32, files: Arc<Semaphore>, proxies: Proxies) -> Self {
        let most = u32::try_from(files.available_permits()).map_or(most, |files| most.min(files));
        let places = PerAddress::new(most, most / ADDRESS, "connections").keeping(most / PROXIES);
        Self { files, places, proxies }
    }

    fn enter(&self, peer: IpAddr) -> Result<Taken, Error> {
        self.places.take(self.proxies.untrusted_peer(peer), 1)
    }
}

/// Serves until `shutdown`, then until the last request in flight is answered. Dropped before, it cuts
/// them off.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
    places: Connections,
) {
    let builder = connection_builder();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Without a free one, no connection is accepted.
            let file = places.files.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((stream, peer.ip(), file))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, peer, file)) => {
                // At once closed, so that its client may go to another server.
                let Ok(place) = places.enter(peer).inspect_err(|error| tracing::debug!(%error, "refused"))
                else {
                    continue;
                };
                let connection = Connection { app: app.clone(), builder: builder.clone(), peer: Peer(peer) };
                let (tls, shutdown) = (tls.clone(), shutdown.clone());
                connections.spawn(async move {
                    let _places = (file, place);
                    if let Err(error) = connection.accepted(stream, tls, shutdown).await {
                        tracing::debug!(error, "a connection broke");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn connection_builder() -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(2 * MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(256)
        .max_pending_accept_reset_streams(1024)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(PATIENCE);
    builder
}

struct Connection {
    app: Router,
    builder: auto::Builder<Streams>,
    peer: Peer,
}

impl Connection {
    async fn accepted(
        self,
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
        shutdown: CancellationToken,
    ) -> Result<(), String> {
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let served = match tls {
            None => self.serve(stream, shutdown).await,
            Some(tls) => {
                let handshake = timeout(PATIENCE, tls.accept(stream)).await;
                let stream = handshake.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
                self.serve(stream, shutdown).await
            }
        };
        served.map_err(|e| e.to_string())
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        shutdown: CancellationToken,
    ) -> Result<(), AnyError> {
        let requests = watch::Sender::new(Requests::default());
        let idle = idle(requests.subscribe());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let open = Open::new(&requests, request.version());
            request.extensions_mut().insert(self.peer);
            let answer = self.app.clone().oneshot(request);
            async move { Ok::<_, Infallible>(Answer::of(answer.await?, open)) }
        });
        let stream = TokioIo::new(Taking::new(stream));
        let mut connection = pin!(self.builder.serve_connection(stream, service));
        tokio::select! {
            served = connection.as_mut() => return served,
            begun = idle => {
                connection.as_mut().graceful_shutdown();
                // What is on its way from who has sent nothing in time is not waited for.
                let rest = if begun { PATIENCE } else { Duration::ZERO };
                return timeout(rest, connection).await.unwrap_or_else(|_| Err("no request came".into()));
            }
            () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// Requests of a connection: whether there was one, and how many are open.
#[derive(Default, Clone, Copy)]
struct Requests {
    begun: bool,
    open: usize,
}

/// Returns once no request has come for too long: whether there was one before. The versions are told apart by the first
/// bytes, for which hyper waits without end.
async fn idle(mut requests: watch::Receiver<Requests>) -> bool {
    loop {
        let now = *requests.borrow_and_update();
        let patience = if now.begun { IDLE } else { PATIENCE };
        let changed = requests.changed();
        let is_idle =
            if now.open == 0 { timeout(patience, changed).await.is_err() } else { changed.await.is_err() };
        if is_idle {
            return now.begun;
        }
    }
}

/// A request of HTTP/2 from its arrival until its answer is taken, among those of its connection. One of HTTP/1.1 stays
/// open: when that is taken, the connection alone knows.
pub struct Open(Option<watch::Sender<Requests>>);

impl Open {
    fn new(all: &watch::Sender<Requests>, version: Version) -> Self {
        all.send_modify(|requests| *requests = Requests { begun: true, open: requests.open + 1 });
        Self((version == Version::HTTP_2).then(|| all.clone()))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(all) = &self.0 {
            all.send_modify(|requests| requests.open -= 1);
        }
    }
}

/// TLS, if the settings ask for it.
pub fn tls(args: &ServeArgs) -> Result<Option<TlsAcceptor>, ServeError> {
    let config = nexus_kit::tls::server_config(args)?.map(|mut config| {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    Ok(config)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
