//! Serving: listeners, reflection, health, the operations port, and a drain that ends.

use std::{future::Future, io, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use futures::{StreamExt, future::BoxFuture};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    arriving::Arriving,
    auth::{Authenticator, KeyVerifier},
    config::{ServeArgs, TelemetryArgs},
    connection::Heard,
    layer::RequestLayer,
    leaving::Leaving,
    metrics::Metrics,
    share::Shares,
    telemetry,
    tls::TlsError,
    turn::Turns,
};

/// Longest batch of events that is read; 10,000 are about 2 MiB, of the longest ones 7.5 MiB.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Longest request without events that is read; 1,000 account ids are about 70 KiB.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Longest webhook that is taken, and handed on as a part of a request.
pub const MAX_WEBHOOK_BYTES: usize = 1024 * 1024;
/// Longest request of health and reflection, whose callers need no credentials.
const MAX_OPEN_REQUEST_BYTES: usize = 4 * 1024;
/// Calls that were given up before they were begun, at one time on one connection. A gateway gives up as many as
/// its clients; beyond h2's own 20 it would be cut off for all of them.
const MAX_GIVEN_UP: usize = 1024;

/// Clients come back over a new connection, so that load spreads over replicas that joined later.
pub const CONNECTION_AGE: Duration = Duration::from_secs(300);
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_EVERY: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a server could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address is taken or not ours.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// Address.
        address: SocketAddr,
        /// Reason.
        error: io::Error,
    },
    /// A listener broke.
    #[error("serving failed: {0}")]
    Io(#[from] io::Error),
    /// The transport broke, or TLS is misconfigured.
    #[error("serving gRPC failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// Our descriptors do not hold together.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A certificate or key is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It cannot go on without this.
    #[error("the task {0:?} panicked")]
    Background(&'static str),
}

/// The two ports of a server.
pub struct Listeners {
    /// gRPC, or HTTP in the gateway.
    pub main: TcpListener,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub operations: TcpListener,
}

impl Listeners {
    /// Listens on both; port 0 takes a free one.
    pub async fn bind(main: SocketAddr, operations: SocketAddr) -> Result<Self, ServeError> {
        Ok(Self { main: bind(main).await?, operations: bind(operations).await? })
    }

    /// Says where it listens: once the settings have held and it is about to serve.
    pub fn announce(&self) -> Result<(), ServeError> {
        let (main, operations) = (self.main_addr()?, self.operations_addr()?);
        tracing::info!(%main, %operations, "listening");
        Ok(())
    }

    /// Where the main port is.
    pub fn main_addr(&self) -> io::Result<SocketAddr> {
        self.main.local_addr()
    }

    /// Where the operations port is.
    pub fn operations_addr(&self) -> io::Result<SocketAddr> {
        self.operations.local_addr()
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|error| ServeError::Bind { address, error })
}

/// How ready a server is that can do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// Everything is there.
    Fully,
    /// It goes on without something that it needs in the long run.
    Degraded,
}

/// Says whether the dependencies are there, or what is missing.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Result<Ready, String>> + Send + Sync>;

/// A gRPC server, ready to serve.
pub struct GrpcServer {
    /// Its services.
    pub routes: Routes,
    /// Their full names, for health and reflection.
    pub services: &'static [&'static str],
    /// Those of another's protocol, for health: reflection has no descriptors of them.
    pub foreign_services: &'static [&'static str],
    /// Verifies callers.
    pub auth: Arc<Authenticator>,
    /// Verifies API keys; `None`: it takes none.
    pub api_keys: Option<KeyVerifier>,
    /// Its metrics.
    pub metrics: Metrics,
    /// What each account has at work, of the connections that calls take.
    pub turns: Turns,
    /// How to serve.
    pub args: ServeArgs,
    /// Whether it is ready.
    pub readiness: Readiness,
    /// After so long a connection takes no new calls; [`CONNECTION_AGE`] but in tests.
    pub connection_age: Duration,
    /// Connections that are open at once; beyond them none is accepted. [`crate::descriptors::connection_places`] but in
    /// tests.
    pub connections: Arc<Semaphore>,
}

impl GrpcServer {
    /// Serves until `shutdown`, then finishes what is in flight within the grace.
    pub async fn serve(self, listeners: Listeners, shutdown: CancellationToken) -> Result<(), ServeError> {
        listeners.announce()?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let stop_operations = CancellationToken::new();
        let operations = tokio::spawn(operations(
            listeners.operations,
            self.metrics.clone(),
            self.readiness.clone(),
            stop_operations.clone(),
        ));
        let services = [self.services, self.foreign_services].concat();
        set_health(&health, &services, ServingStatus::NotServing).await;
        let watch = tokio::spawn(watch_readiness(health, services, self.readiness.clone(), shutdown.clone()));

        let mut reflection = tonic_reflection::server::Builder::configure();
        let mut reflection_alpha = tonic_reflection::server::Builder::configure();
        let ours = [
            nexus_proto::DESCRIPTOR_SET,
            nexus_proto::ERROR_DETAILS_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
        ];
        for set in ours {
            reflection = reflection.register_encoded_file_descriptor_set(set);
            reflection_alpha = reflection_alpha.register_encoded_file_descriptor_set(set);
        }
        let names = || self.services.iter().copied().chain(["grpc.health.v1.Health"]);
        let reflection = names().fold(reflection, |b, name| b.with_service_name(name)).build_v1()?;
        let reflection_alpha =
            names().fold(reflection_alpha, |b, name| b.with_service_name(name)).build_v1alpha()?;
        let layer = RequestLayer {
            auth: self.auth,
            api_keys: self.api_keys,
            metrics: self.metrics,
            max_in_flight: self.args.max_in_flight,
            shares: Shares::of(self.args.max_in_flight),
            key_turns: self.turns.apart(),
            turns: self.turns,
            arriving: Arriving::default(),
            leaving: Leaving::default(),
            request_timeout: self.args.request_timeout,
        };
        let routes = self
            .routes
            .add_service(health_service.max_decoding_message_size(MAX_OPEN_REQUEST_BYTES))
            .add_service(reflection.max_decoding_message_size(MAX_OPEN_REQUEST_BYTES))
            .add_service(reflection_alpha.max_decoding_message_size(MAX_OPEN_REQUEST_BYTES));
        let router = server(&self.args, self.connection_age)?.layer(layer).add_routes(routes);

        let incoming = TcpIncoming::from(listeners.main).with_nodelay(Some(true)).then(move |accepted| {
            let places = self.connections.clone();
            async move {
                match accepted {
                    // Without a free place this one waits, and no other is accepted.
                    Ok(stream) => {
                        if places.available_permits() == 0 {
                            tracing::warn!("as many connections are open as may be: the next one waits");
                        }
                        let place = places.acquire_owned().await.map_err(io::Error::other)?;
                        Ok(Heard::new(stream, place))
                    }
                    // E.g. for want of file descriptors: tonic would try again at once, and again.
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        Err(error)
                    }
                }
            }
        });
        let served = router.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let result = drained(served, &shutdown, self.args.shutdown_grace).await;
        shutdown.cancel();
        stop_operations.cancel();
        join(watch).await;
        join(operations).await;
        result.transpose().map(|_| ()).map_err(ServeError::Transport)
    }
}

fn server(args: &ServeArgs, age: Duration) -> Result<Server, ServeError> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // No grace beside it: with one, the connection would be cut at its end without a GOAWAY, and whatever
        // is in flight with it.
        .max_connection_age(age)
        .max_concurrent_streams(1024)
        .http2_max_pending_accept_reset_streams(Some(MAX_GIVEN_UP))
        .http2_max_header_list_size(32 * 1024)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024);
    match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => {
            let identity = Identity::from_pem(std::fs::read(cert)?, std::fs::read(key)?);
            Ok(server.tls_config(ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_TIMEOUT))?)
        }
        _ => Ok(server),
    }
}

/// Runs `served` to its end; once `shutdown` is called, for `grace` at most. `None`: cut off.
pub async fn drained<F: Future>(
    served: F,
    shutdown: &CancellationToken,
    grace: Duration,
) -> Option<F::Output> {
    let overtime = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        output = served => Some(output),
        () = overtime => {
            tracing::warn!(?grace, "connections that are open after the grace are cut off");
            None
        }
    }
}

async fn join(task: tokio::task::JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a background task of the server failed");
    }
}

async fn set_health(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services.iter().chain(&[""]) {
        health.set_service_status(*service, status).await;
    }
}

/// Keeps health in step with readiness; not serving from the moment of shutdown.
async fn watch_readiness(
    health: HealthReporter,
    services: Vec<&'static str>,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    let mut was: Option<Result<Ready, String>> = None;
    loop {
        let is = checked(&readiness).await;
        if was.as_ref() != Some(&is) {
            match &is {
                Ok(ready) => {
                    tracing::info!(?ready, "ready");
                    set_health(&health, &services, ServingStatus::Serving).await;
                }
                Err(reason) => {
                    tracing::warn!(reason, "not ready");
                    set_health(&health, &services, ServingStatus::NotServing).await;
                }
            }
            was = Some(is);
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
    set_health(&health, &services, ServingStatus::NotServing).await;
}

async fn checked(readiness: &Readiness) -> Result<Ready, String> {
    tokio::time::timeout(CHECK_TIMEOUT, readiness())
        .await
        .unwrap_or_else(|_| Err("the check took too long".to_owned()))
}

/// The operations port: `/metrics`, `/healthz` (alive), `/readyz` (dependencies are there, or it goes on without).
pub async fn operations(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let app = Router::new()
        .route(
            "/metrics",
            get(|State(m): State<Metrics>| async move {
                ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], m.render())
            }),
        )
        .with_state(metrics)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || ready(readiness.clone())));
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "the operations port failed");
    }
}

/// The answer of `/readyz`.
pub async fn ready(readiness: Readiness) -> (StatusCode, &'static str) {
    match checked(&readiness).await {
        Ok(Ready::Fully) => (StatusCode::OK, "ready\n"),
        Ok(Ready::Degraded) => (StatusCode::OK, "degraded\n"),
        Err(reason) => {
            // A probe asks again and again: the change is what is logged.
            tracing::debug!(reason, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}

/// A token that is cancelled by SIGTERM or SIGINT; a second signal ends the process at once.
pub fn shutdown_on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        cancel.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::warn!("stopped at once by a second signal");
        std::process::exit(130);
    });
    Ok(token)
}

/// The body of a server's `main`: telemetry, signals, the server, exit code 1 with the error if it fails.
pub async fn run<F, E>(
    name: &'static str,
    args: &TelemetryArgs,
    server: impl FnOnce(CancellationToken) -> F,
) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: std::error::Error,
{
    let telemetry = match telemetry::init(args, name) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let shutdown = match shutdown_on_signals() {
        Ok(token) => token,
        Err(error) => {
            eprintln!("{name}: signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = server(shutdown).await;
    // The exporter's last send blocks.
    let flushed = tokio::task::spawn_blocking(move || telemetry.shutdown()).await;
    match (result, flushed) {
        (Ok(()), Ok(())) => ExitCode::SUCCESS,
        (Ok(()), Err(error)) => {
            eprintln!("{name}: flushing traces: {error}");
            ExitCode::SUCCESS
        }
        (Err(error), _) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
