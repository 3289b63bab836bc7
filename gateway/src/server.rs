//! The HTTP server: HTTP/1.1 and HTTP/2, bounds on what a client may send and how long it may take for it, and for what it
//! is sent; TLS where configured, and a drain.

use std::{error::Error as StdError, io, pin::pin, sync::Arc, time::Duration};

use axum::{Router, response::Response};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use nexus_kit::{config::ServeArgs, descriptors::connection_places, serve::ServeError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    address::Peer,
    layer::{MAX_HEADER_BYTES, MAX_HEADERS},
    taken::{Answer, Streams, Taking},
};

type AnyError = Box<dyn StdError + Send + Sync>;

/// Longest a client may take for its TLS handshake, for its first request, and for the headers of each.
const PATIENCE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// After an accept that failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then until the last request in flight is answered. Dropped before, it cuts
/// them off.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
) {
    let builder = connection_builder();
    let mut connections = JoinSet::new();
    // Without a free one, no connection is accepted.
    let places = connection_places();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((stream, Peer(peer.ip()), place))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let connection = Connection { app: app.clone(), builder: builder.clone(), peer };
                let (tls, shutdown) = (tls.clone(), shutdown.clone());
                connections.spawn(async move {
                    let _place = place;
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
        .header_read_timeout(PATIENCE)
        .max_headers(2 * MAX_HEADERS)
        .max_buf_size(2 * MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(2 * MAX_HEADER_BYTES as u32)
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
        // The versions are told apart by the first bytes, for which hyper waits without end.
        let first = Arc::new(Notify::new());
        let begun = first.clone();
        let app = self.app.map_request(move |mut request: Request<Incoming>| {
            first.notify_one();
            request.extensions_mut().insert(self.peer);
            request
        });
        let app = app.map_response(|response: Response| response.map(Answer::new));
        let silent = async {
            if timeout(PATIENCE, begun.notified()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let service = TowerToHyperService::new(app);
        let stream = TokioIo::new(Taking::new(stream));
        let mut connection = pin!(self.builder.serve_connection(stream, service));
        tokio::select! {
            served = connection.as_mut() => return served,
            () = silent => {
                connection.as_mut().graceful_shutdown();
                return timeout(PATIENCE, connection).await.unwrap_or_else(|_| Err("no request came".into()));
            }
            () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
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
