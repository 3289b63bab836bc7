//! billing-svc: charges every cent of overage exactly once through Stripe, keeps accounts and plans.
//!
//! Rules that hold everywhere in it:
//!
//! * A charge is written down, with its key and exact payload, and committed before it is sent
//!   ([`app::process_overage`]); a process may end at any point.
//! * What became of a request to Stripe is known, or it is in doubt ([`payments`]). A doubt is never taken for
//!   a failure: it is resolved before anything else is charged for its period.
//! * One run at a time, over all replicas, by a lease ([`store::lease`]); two at once would charge once all the
//!   same, for each period's row is locked.
//! * An event of Stripe's is stored and committed before it is answered, and applied from how things stand at Stripe
//!   when it is ([`app::stripe_events`]): doubled, late and in any order they come to the same.
//! * The database's clock decides ages, periods and settlement; money is integer micros.
//!
//! The way of a request is a straight line:
//!
//! | module | what it does |
//! |---|---|
//! | [`grpc`] | the tonic trait: who is calling, parse (all violations at once), one use case, the answer |
//! | [`app`] | one use case a file; owns the transaction |
//! | [`domain`] | types and rules; pure |
//! | [`payments`] | the ports to Stripe, and Stripe over HTTP |
//! | [`notify`], [`outgoing`] | the workers that notify customers and operators; requests to URLs of others |
//! | [`store`] | the only SQL; one file a table; every function takes a connection |
//! | [`error`] | what can go wrong, and the status each is |
//! | [`metrics`] | metrics of its own |
//! | [`config`] | flags and environment |

pub mod app;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod metrics;
pub mod notify;
pub mod outgoing;
pub mod payments;
pub mod store;

use std::sync::Arc;

use nexus_kit::{
    auth::Authenticator,
    background::Background,
    db::{self, Role},
    descriptors::connection_places,
    metrics::Metrics,
    serve::{CONNECTION_AGE, GrpcServer, Listeners, Ready, ServeError, drained},
    tls,
    turn::Turns,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use app::{
    clear_ended,
    process_overage::Engine,
    reconcile::{Drift, Reconciler},
    sales::{Pages, Sales},
    stripe_events::{self, worker::Worker},
};
use domain::stripe_signature::Secrets;
use payments::{pace::Pace, stripe::Stripe};

pub use config::Config;
pub use error::{Error, StartError};

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
    let pool = db::pool(&config.db, Role::Billing)?;
    let background = Background::new(shutdown.clone());
    let refreshing = app::refresh::refresher(pool.clone(), shutdown.clone());
    let _refreshing = background.spawn("refresher", refreshing);
    let _handing_out = background.spawn("plans", app::upsert_plan::take_up(pool.clone(), shutdown.clone()));
    let stripe = Arc::new(Stripe::new(&config.stripe)?);
    let metrics = Metrics::new();
    let pace = Arc::new(Pace::new(config.stripe.stripe_rate_per_second));
    let engine = Arc::new(Engine::new(
        pool.clone(),
        stripe.clone(),
        pace.clone(),
        config.overage_concurrency as usize,
        shutdown.clone(),
    ));
    let _end_with_us = engine.kill_guard();
    let rechecking = app::process_overage::rechecker(engine.outside_runs(), config.overage_recheck_every);
    let _rechecking = background.spawn("rechecks", rechecking);
    let (event_stored, event_applied) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    // Stripe's limit is one per endpoint.
    let events_pace = Arc::new(Pace::of_waiting_callers(config.stripe.stripe_rate_per_second));
    let at_once = config.stripe_events_concurrency as usize;
    let events_context = stripe_events::Context::new(stripe.clone(), events_pace, at_once);
    let pages = Pages::of(&config.dashboard_url);
    let sales = Sales::new(pool.clone(), stripe.clone(), events_context.clone(), pages);
    let _selling = background.spawn("sales", app::sales::worker::run(sales.clone(), shutdown.clone()));
    let worker = Worker::new(
        pool.clone(),
        events_context.clone(),
        engine.outside_runs(),
        at_once,
        (event_stored.clone(), event_applied.clone()),
        &metrics,
        shutdown.clone(),
    );
    let clearing = clear_ended::Worker {
        charging: engine.outside_runs(),
        concurrency: config.stripe_events_concurrency as usize,
        wake: event_applied,
        shutdown: shutdown.clone(),
    };
    let events = background.spawn("stripe events", async {
        tokio::join!(worker.run(), clearing.run());
    });
    let notifier = notify::Notifier::new(&config.notify, pool.clone())?;
    let webhook_policy = notifier.policy.clone();
    let notifications = background.spawn("notifications", notifier.work(shutdown.clone()));
    let drift = metrics.register(Drift::register);
    let _drifting = background.spawn("drift", drift.clone().follow(pool.clone(), shutdown.clone()));
    let reconciler = Arc::new(Reconciler::new(
        pool.clone(),
        stripe.clone(),
        stripe,
        events_context.clone(),
        pace,
        drift,
        shutdown.clone(),
    ));
    let _reconciler_with_us = reconciler.kill_guard();
    let service = grpc::Service {
        pool: pool.clone(),
        sales,
        engine: engine.clone(),
        reconciler: reconciler.clone(),
        webhook_secrets: config.stripe_webhook_secret.as_ref().map(Secrets::parse).unwrap_or_default(),
        event_stored,
        request_timeout: config.serve.request_timeout,
        webhook_policy,
    };
    let grace = config.serve.shutdown_grace;
    let server = GrpcServer {
        routes: Routes::new(grpc::server(service)),
        services: &["nexus.billing.v1.BillingService"],
        foreign_services: &[],
        auth,
        api_keys: None,
        metrics,
        turns: Turns::of(config.db.database_max_connections),
        args: config.serve,
        connection_age: CONNECTION_AGE,
        connections: connection_places(),
        readiness: Arc::new(move || {
            let pool = pool.clone();
            Box::pin(async move {
                db::ready(&pool, Role::Billing).await.map(|()| Ready::Fully).map_err(|e| e.to_string())
            })
        }),
    };
    let serving = async {
        let served = server.serve(listeners, shutdown.clone()).await;
        shutdown.cancel();
        served
    };
    let runs = async {
        shutdown.cancelled().await;
        let ended = async {
            tokio::join!(engine.finished(), reconciler.finished(), events.ended(), notifications.ended())
        };
        drained(ended, &shutdown, grace).await
    };
    tokio::join!(serving, runs).0?;
    Ok(background.outcome()?)
}
