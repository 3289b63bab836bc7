//! usage-svc: records usage exactly once, admits calls against quotas, keeps API keys.
//!
//! Rules that hold everywhere in it:
//!
//! * An acknowledged event is committed, once, in the raw log, the counters and the rollups
//!   ([`app::flush`]); whether an event is new, the database decides, never a memory of ours. With a [`spool`],
//!   events are acknowledged while the database is away, too, once they are synced there, and committed later
//!   ([`app::drain`]).
//! * A hard limit is exact over all replicas: units are granted under the lock of the account's row, held by
//!   one replica, and go back only when that one returns them ([`app::quota`]).
//! * The database's clock decides periods, ages and grants.
//!
//! The way of a request is a straight line:
//!
//! | module | what it does |
//! |---|---|
//! | [`grpc`] | the tonic trait: who is calling, parse (all violations at once), one use case, the answer |
//! | [`app`] | one use case a file; owns the transaction |
//! | [`domain`] | types and rules; pure |
//! | [`store`] | the only SQL; one file a table; every function takes a connection |
//! | [`spool`] | events on a volume while the database is away |
//! | [`clock`] | time that only goes forward |
//! | [`error`] | what can go wrong, and the status each is |
//! | [`config`] | flags and environment |

pub mod app;
pub mod clock;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod spool;
pub mod store;

use std::{process, sync::Arc, time::Duration};

use app::{
    aside,
    away::Away,
    drain::Drain,
    feed,
    known::Known,
    maintenance,
    outage::Outage,
    quota,
    spooling::{SpoolMetrics, Spooling},
    stalled, verify_api_key,
    writer::{self, Bounds, WriterMetrics},
};
use nexus_kit::{
    auth::Authenticator,
    background::Background,
    config::DbArgs,
    db::{self, NotReady, Role},
    descriptors::connection_places,
    metrics::Metrics,
    serve::{CONNECTION_AGE, GrpcServer, Listeners, Ready, ServeError},
    tls,
    turn::Turns,
};
use spool::SpoolError;
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;
pub use error::{Error, StartError};

/// More writers than this divide batches into parts that are too small. Each takes a slot of the counters.
const MAX_WRITERS: u32 = 4;
/// Longest time that a stopping server writes what its calls left behind; less where its grace is.
const LAST_FLUSHES: Duration = Duration::from_secs(10);

/// Listens where the configuration says, and serves until `shutdown`.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<(), StartError> {
    let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
    serve(config, listeners, shutdown).await
}

/// Wires the service and serves until `shutdown`: the only place that knows all parts.
pub async fn serve(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    tls::server_config(&config.serve).map_err(ServeError::from)?;
    let auth = Arc::new(Authenticator::new(&config.auth)?);
    let pool = db::pool(&config.db, Role::Usage)?;
    let writers = writers();
    let metrics = Metrics::new();
    let writer_metrics = metrics.register(WriterMetrics::register);
    let known = Arc::new(Known::default());
    let spooling = open_spool(&config, &known, &metrics).await?;
    // Some for what is set aside, one for the drain.
    let connections = writers + aside::WRITERS + u32::from(spooling.is_some());
    let writer_pool =
        db::pool(&DbArgs { database_max_connections: connections, ..config.db.clone() }, Role::Usage)?;

    let stop = CancellationToken::new();
    let background = Background::new(shutdown.clone());
    let (feed, listening) = feed::start(&config.db, stop.clone())?;
    let listening = background.watch("feed", listening);
    let outage = Arc::new(Outage::new(feed));
    let away = match &spooling {
        Some(spooling) => Away::Spooled(spooling.clone()),
        None => Away::Refused(outage.clone()),
    };
    let (recorder, writing) = writer::start(
        &writer_pool,
        Bounds { writers, one_try: config.flush_timeout, events: config.ingest_queue as usize },
        &writer_metrics,
        &known,
        &away,
        &stop,
    );
    let writing = background.watch("writers", writing);
    metrics.register(|registry| recorder.register(registry));
    let draining = spooling.clone().map(|spooling| {
        let drain = Drain::new(spooling, writer_pool, config.flush_timeout, stop.clone());
        background.spawn("drain", drain.run())
    });
    let (keys, following) =
        verify_api_key::start(pool.clone(), outage.clone(), config.key_stale_max, stop.clone());
    let following = background.watch("keys", following);
    let name = format!("{} of process {}", listeners.main_addr().map_err(ServeError::Io)?, process::id());
    let (quota, holding) =
        quota::start(pool.clone(), outage, known.clone(), name, config.key_stale_max, stop.clone());
    let holding = background.watch("quota", holding);
    metrics.register(|registry| quota.register(registry));
    let maintaining = maintenance::run(pool.clone(), config.raw_retention_days, stop.clone());
    let maintaining = background.spawn("maintenance", maintaining);
    let watching = background.spawn("stalled", stalled::run(pool.clone(), stop.clone()));
    let rate_limit = grpc::envoy::RateLimit { quota: quota.clone(), keys: keys.clone() };
    let service = grpc::Service {
        pool: pool.clone(),
        recorder,
        quota,
        stop: shutdown.clone(),
        quota_memory: Default::default(),
        keys: keys.clone(),
        known,
        key_secret: config.auth.service_token_secret.clone(),
    };
    let grace = config.serve.shutdown_grace;
    let server = GrpcServer {
        routes: Routes::new(grpc::server(service)).add_service(grpc::envoy::server(rate_limit)),
        services: &["nexus.usage.v1.UsageService"],
        foreign_services: &["envoy.service.ratelimit.v3.RateLimitService"],
        auth,
        api_keys: Some(grpc::caller::key_verifier(keys.clone())),
        metrics,
        turns: Turns::of(config.db.database_max_connections),
        args: config.serve,
        connection_age: CONNECTION_AGE,
        connections: connection_places(),
        readiness: Arc::new(move || Box::pin(readiness(pool.clone(), spooling.clone()))),
    };
    let served = server.serve(listeners, shutdown).await;
    // Only now: what was taken is written before the process ends.
    stop.cancel();
    let until = Instant::now() + grace.min(LAST_FLUSHES);
    let tasks = [writing, holding, maintaining, watching, listening, following];
    for task in tasks.into_iter().chain(draining) {
        task.end_by(until).await;
    }
    served?;
    Ok(background.outcome()?)
}

async fn open_spool(
    config: &Config,
    known: &Arc<Known>,
    metrics: &Metrics,
) -> Result<Option<Spooling>, SpoolError> {
    let Some(folder) = config.spool_dir.clone() else { return Ok(None) };
    let metrics = metrics.register(SpoolMetrics::register);
    Spooling::open(folder, config.spool_max_bytes, known.clone(), metrics).await.map(Some)
}

/// Ready is who can record: by the database, or by a spool that takes events while that is away, or is not known to be
/// back.
async fn readiness(pool: PgPool, spooling: Option<Spooling>) -> Result<Ready, String> {
    match (db::ready(&pool, Role::Usage).await, spooling) {
        (Err(NotReady::Away(reason)), Some(spooling)) => {
            // Also where the spool takes nothing: whoever looks for the database asks that for room, too.
            spooling.note_away();
            if spooling.takes_events().await { Ok(Ready::Degraded) } else { Err(reason) }
        }
        (Ok(()), Some(spooling)) if spooling.is_away() => {
            let reason = "the database was not reached again yet, and the spool takes no events";
            if spooling.takes_events().await { Ok(Ready::Degraded) } else { Err(reason.to_owned()) }
        }
        (ready, _) => ready.map(|()| Ready::Fully).map_err(|reason| reason.to_string()),
    }
}

/// Tasks that write: as many as there are cores, within bounds, as each keeps about one busy here and in the
/// database.
fn writers() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    u32::try_from(cores).unwrap_or(MAX_WRITERS).clamp(1, MAX_WRITERS)
}
