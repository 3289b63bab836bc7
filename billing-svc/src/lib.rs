//! billing-svc
//!
//! The way of a request is a straight line:
//!
//! | module | what it does |
//! |---|---|
//! | [`grpc`] | the tonic trait: who is calling, parse (all violations at once), one use case, the answer |
//! | [`app`] | one use case a file; owns the transaction |
//! | [`domain`] | types and rules; pure |
//! | [`payments`] | the port to Stripe: over HTTP, and in memory for tests |
//! | [`store`] | the only SQL; one file a table; every function takes a connection |
//! | [`error`] | what can go wrong, and the status each is |
//! | [`config`] | flags and environment |

pub mod app;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod payments;
pub mod store;

use std::sync::Arc;

use nexus_kit::{
    auth::Authenticator,
    db::{self, Role},
    metrics::Metrics,
    serve::{GrpcServer, Listeners},
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
    let auth = Arc::new(Authenticator::new(&config.auth)?);
    let pool = db::pool(&config.db, Role::Billing)?;
    let refresher = tokio::spawn(app::refresh::refresher(pool.clone(), shutdown.clone()));
    let _stop_with_us = AbortOnDrop(refresher);
    let service = grpc::Service { pool: pool.clone() };
    let server = GrpcServer {
        routes: Routes::new(grpc::server(service)),
        services: &["nexus.billing.v1.BillingService"],
        more_descriptors: &[],
        auth,
        metrics: Metrics::new(),
        args: config.serve,
        readiness: Arc::new(move || {
            let pool = pool.clone();
            Box::pin(async move { db::ready(&pool).await })
        }),
    };
    Ok(server.serve(listeners, shutdown).await?)
}

/// Ends a task with its owner, so that nothing of a server outlives it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
