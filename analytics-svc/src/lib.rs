//! analytics-svc answers what an account used and what the business earns. It only reads, and never the raw
//! log, so that its cost does not grow with events:
//!
//! * History and endpoints come from the daily rollup, which the flush that commits an event updates in the
//!   same transaction: an acknowledged event is in them.
//! * Overview and users come from one source, the figures of each account's current period
//!   (`eco_accounts_now`), so that their calls, overage and order agree; their usage is the summary that billing-svc
//!   keeps within a second of the counters. A summary of an earlier period is not current: such an account shows zeros.
//! * The revenue history comes from the movements of the MRR (`eco_mrr_movements_now`), which triggers write in the
//!   transaction that changes what an account pays, and from the ledger. All movements add up to the overview's MRR.
//! * A forecast comes from the counters and the daily rollup, an export from the hourly one.
//!
//! The figures of one answer are of one snapshot (an export is a page a snapshot); the database's clock says what is
//! today and current.
//!
//! The way of a request is a straight line:
//!
//! | module | what it does |
//! |---|---|
//! | [`grpc`] | the tonic trait: who is calling, parse (all violations at once), one use case, the answer |
//! | [`app`] | one use case a file; owns the transaction |
//! | [`domain`] | types and rules; pure |
//! | [`store`] | the only SQL; one file a table; every function takes a connection |
//! | [`error`] | what can go wrong, and the status each is |
//! | [`config`] | flags and environment |

pub mod app;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod store;

use std::sync::Arc;

use nexus_kit::{
    auth::Authenticator,
    db::{self, Role},
    descriptors::connection_places,
    metrics::Metrics,
    serve::{CONNECTION_AGE, GrpcServer, Listeners, Ready, ServeError},
    tls,
    turn::Turns,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

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
    let pool = db::pool(&config.db, Role::Analytics)?;
    let turns = Turns::of(config.db.database_max_connections);
    let service = grpc::Service { pool: pool.clone(), turns: turns.clone(), stop: shutdown.clone() };
    let server = GrpcServer {
        routes: Routes::new(grpc::server(service)),
        services: &["nexus.analytics.v1.AnalyticsService"],
        foreign_services: &[],
        auth,
        api_keys: None,
        metrics: Metrics::new(),
        turns,
        args: config.serve,
        connection_age: CONNECTION_AGE,
        connections: connection_places(),
        readiness: Arc::new(move || {
            let pool = pool.clone();
            Box::pin(async move {
                db::ready(&pool, Role::Analytics).await.map(|()| Ready::Fully).map_err(|e| e.to_string())
            })
        }),
    };
    Ok(server.serve(listeners, shutdown).await?)
}
