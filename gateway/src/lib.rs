//! The gateway: REST in, gRPC out, no SQL.
//!
//! The way of a request is a straight line:
//!
//! | module | what it does |
//! |---|---|
//! | [`server`] | connections: bounds, TLS, drain |
//! | [`edge`] | around everything: compression, pages of other origins |
//! | [`layer`] | around every request: id, span, log line, metrics, time limit, headers |
//! | [`address`], [`rate`] | where a request came from; how fast one caller may send them |
//! | [`per_address`] | what is shared out by address |
//! | [`places`], [`taken`] | places of requests in flight; answers that nobody takes |
//! | [`fixed`] | bodies that are the same for everybody |
//! | [`etag`] | reads whose answer a client has already |
//! | [`auth`] | who is calling, as extractors |
//! | [`known_keys`] | API keys that were good a short while ago |
//! | [`query`], [`body`] | query parameters and JSON bodies, all violations at once |
//! | [`routes`] | one file a group of endpoints: parse, call the service, convert the answer |
//! | [`openapi`] | the document of all of them |
//! | [`metering`] | around a tracked endpoint: whose key, quota, record |
//! | [`backend`] | the clients of the three services: credentials, deadline, trace context |
//! | [`token`] | the gateway's own service tokens |
//! | [`status`] | what a service's status means over REST |
//! | [`error`], [`problem`] | what can go wrong, the answer each is, and its two forms |
//! | [`pages`] | the web pages |
//! | [`convert`], [`format`](mod@format) | words and times of the services; money, numbers and times in JSON |
//! | [`readiness`] | whether the services are there |
//! | [`config`] | flags and environment |

pub mod address;
pub mod auth;
pub mod backend;
pub mod body;
pub mod config;
pub mod convert;
pub mod edge;
pub mod error;
pub mod etag;
pub mod fixed;
pub mod format;
pub mod known_keys;
pub mod layer;
pub mod metering;
pub mod openapi;
pub mod pages;
pub mod per_address;
pub mod places;
pub mod problem;
pub mod query;
pub mod rate;
pub mod readiness;
pub mod routes;
pub mod server;
pub mod status;
pub mod taken;
pub mod token;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nexus_kit::{
    auth::{Authenticator, check_secret},
    config::ServeArgs,
    metrics::Metrics,
    serve::{self, Listeners},
};
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use address::Proxies;
use auth::SecretDigest;
use backend::Backend;
use edge::Origins;
use known_keys::KnownKeys;
use metering::Meter;
use per_address::PerAddress;
use places::{Few, Places};
use rate::Rates;
use server::Connections;

pub use config::Config;
pub use error::{Error, StartError};

/// A gateway that stops delivers the events of answered calls for so long at least.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// What all handlers share.
pub type App = Arc<Gateway>;

/// The parts of a running gateway.
pub struct Gateway {
    /// Verifies users.
    pub auth: Authenticator,
    /// The services.
    pub backend: Arc<Backend>,
    /// Meters tracked endpoints.
    pub meter: Meter,
    /// What the scheduler must show; nothing: not configured.
    pub cron_secret: Option<SecretDigest>,
    /// Counts requests.
    pub metrics: Metrics,
    /// How long each may take.
    pub limits: ServeArgs,
    /// How fast each caller may send them.
    pub rates: Rates,
    /// Who is asked whom a request is from.
    pub proxies: Proxies,
    /// Whose pages may call.
    pub origins: Origins,
    /// Places of requests in flight.
    pub places: Places,
    /// Exports under way.
    pub exports: Few,
    /// Calls of gRPC-Web.
    pub web_calls: Few,
    /// What the pages need.
    pub pages: pages::Pages,
    /// API keys that were good a short while ago.
    pub known_keys: KnownKeys,
    /// Bytes of large webhooks that are read.
    pub webhooks: PerAddress,
    /// Whether the services are there.
    pub readiness: serve::Readiness,
}

/// Listens where the configuration says, and serves until `shutdown`.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<(), StartError> {
    let listeners = Listeners::bind(config.http_addr, config.metrics_addr).await?;
    serve(config, listeners, shutdown).await
}

/// Wires the gateway and serves until `shutdown`: the only place that knows all parts.
pub async fn serve(
    mut config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    if let Some(secret) = config.cron_secret.as_ref().filter(|secret| !secret.expose_secret().is_empty())
        && let Err(error) = check_secret("CRON_SECRET", secret)
    {
        // Those that are in use go on opening: who guesses is held up by the rate of the address.
        tracing::warn!(%error, "the scheduler's secret is easier to guess than it should be");
    }
    if config.auth.jwt_audience.as_ref().is_none_or(String::is_empty) {
        // A provider signs for its other clients, too.
        config.auth.jwt_audience.clone_from(&config.pages.oidc.client_id);
    }
    let backend = Arc::new(Backend::new(&config)?);
    let tls = server::tls(&config.serve)?;
    let grace = config.serve.shutdown_grace;
    let metrics = Metrics::new();
    let app = Arc::new(Gateway {
        auth: Authenticator::new(&config.auth)?,
        readiness: readiness::readiness(backend.clone()),
        meter: Meter::new(&config, &backend).await?,
        backend,
        cron_secret: config.cron_secret.as_ref().and_then(SecretDigest::of),
        places: Places::new(config.serve.max_in_flight, metrics.clone()),
        metrics,
        exports: routes::export::places(),
        web_calls: routes::grpc_web::places(),
        pages: pages::Pages::new(&config, shutdown.clone())?,
        known_keys: KnownKeys::default(),
        webhooks: routes::webhooks::room(),
        rates: Rates::new(config.account_rate_per_second, config.address_rate_per_second),
        proxies: config.trusted_proxies,
        origins: config.cors_allowed_origins,
        limits: config.serve,
    });
    listeners.announce()?;
    let stop_operations = CancellationToken::new();
    let operations = tokio::spawn(serve::operations(
        listeners.operations,
        app.metrics.clone(),
        app.readiness.clone(),
        stop_operations.clone(),
    ));
    let connections = Connections::new(app.proxies.clone());
    let router = routes::router(app.clone());
    let served = server::serve(listeners.main, router, tls, shutdown.clone(), connections);
    let until = async {
        shutdown.cancelled().await;
        Instant::now() + grace
    };
    // Nothing to report of a drain that was cut off: it is logged.
    let (_drained, until) = tokio::join!(serve::drained(served, &shutdown, grace), until);
    let rest = until.saturating_duration_since(Instant::now());
    app.meter.shutdown(rest.max(LAST_EVENTS)).await;
    stop_operations.cancel();
    if let Err(error) = operations.await {
        tracing::error!(%error, "the operations port failed");
    }
    Ok(())
}
