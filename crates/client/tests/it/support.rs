//! A usage-svc that can be killed, trackers, and what the database says afterwards.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_client::{CallOptions, Credentials, Guard, tracker::builder::Builder};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, config::DbArgs, serve::Listeners};
use nexus_proto::usage::v1::{GetCurrentUsageRequest, UsageEvent};
use nexus_testkit::{
    db::TestDb,
    seed,
    settings::{self, ANY_PORT},
};
use nexus_usage::Config;
use sqlx::PgPool;
use tokio::{runtime::Runtime, sync::oneshot};
use tokio_util::sync::CancellationToken;

pub(crate) use nexus_testkit::settings::nowhere;

/// A usage-svc on a runtime of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// On a port that stays its own, so that another one can be started there when it is killed.
    pub(crate) async fn start(db: DbArgs) -> Result<Self> {
        Self::start_at(nowhere()?, db).await
    }

    pub(crate) async fn start_at(address: SocketAddr, db: DbArgs) -> Result<Self> {
        Self::start_with(address, db, Duration::from_secs(60)).await
    }

    /// One that believes keys, and lets clients use what they hold, for so long without a word of changes.
    pub(crate) async fn start_with(address: SocketAddr, db: DbArgs, key_stale_max: Duration) -> Result<Self> {
        let config = Config {
            grpc_addr: address,
            metrics_addr: ANY_PORT,
            raw_retention_days: 45,
            ingest_queue: 100_000,
            flush_timeout: Duration::from_secs(35),
            key_stale_max,
            spool_dir: None,
            spool_max_bytes: 1 << 30,
            auth: settings::auth_args(),
            serve: settings::serve_args(),
            db,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (bound, listens) = oneshot::channel();
        runtime.spawn(async move {
            let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
            bound.send(listeners.main_addr()?).ok();
            nexus_usage::serve(config, listeners, CancellationToken::new()).await?;
            anyhow::Ok(())
        });
        let address = listens.await.context("the server listens")?;
        Ok(Self { address, runtime: Some(runtime) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it at once, whatever it is doing: its connections break, nothing is finished.
    pub(crate) async fn kill(mut self) -> Result<()> {
        let runtime = self.runtime.take().context("is killed once")?;
        // Waits until its tasks, and so its sockets, are gone.
        tokio::task::spawn_blocking(move || drop(runtime)).await?;
        Ok(())
    }

    /// Units consumed of the account's quota, as the server says: those that it holds unspent are not.
    pub(crate) async fn consumed(&self, eco_id: &str) -> Result<i64> {
        let options = CallOptions::bearer(&settings::user_token(eco_id)?, Duration::from_secs(20))?;
        let request = GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
        let mut client = nexus_client::usage(nexus_client::channel(&self.url())?);
        Ok(client.get_current_usage(options.request(request)).await?.into_inner().consumed_count)
    }

    pub(crate) fn guard(&self) -> Result<Guard> {
        Ok(Guard::new(nexus_client::channel(&self.url())?, credentials()?).timeout(Duration::from_secs(20)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Returns once so many servers hear of changes; before, they lend nothing.
pub(crate) async fn hear(db: &TestDb, servers: i64) -> Result<()> {
    let beats = "select count(*) from pg_stat_activity
        where datname = current_database() and state = 'idle' and query like 'select pg_notify%'";
    while sqlx::query_scalar::<_, i64>(beats).fetch_one(&db.pool).await? < servers {}
    Ok(())
}

/// A service that may record and check.
pub(crate) fn credentials() -> Result<Credentials> {
    Ok(Credentials::bearer(&settings::service_token(&[Scope::UsageWrite, Scope::UsageCheck])?))
}

/// A tracker that comes back quickly after failures.
pub(crate) fn tracker(url: &str) -> Result<Builder> {
    let builder = nexus_client::Tracker::builder(url, credentials()?);
    Ok(builder.backoff(Duration::from_millis(5), Duration::from_millis(50)))
}

/// An account whose period began ten days ago.
pub(crate) async fn account(db: &TestDb, eco_id: &str, plan: Plan) -> Result<()> {
    seed::account(&db.pool, eco_id, plan, Utc::now() - TimeDelta::days(10)).await
}

pub(crate) fn event(eco_id: &str) -> UsageEvent {
    UsageEvent {
        eco_id: eco_id.to_owned(),
        endpoint: "/v1/things/{id}".to_owned(),
        method: "GET".to_owned(),
        status_code: 200,
        ..UsageEvent::default()
    }
}

/// Rows of an account in the raw log, and its units in the counters and in the rollup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) rows: i64,
    pub(crate) units: i64,
    pub(crate) daily: i64,
}

/// So many of each.
pub(crate) fn each(n: i64) -> Counted {
    Counted { rows: n, units: n, daily: n }
}

pub(crate) async fn counted(pool: &PgPool, eco_id: &str) -> Result<Counted> {
    let (rows, units, daily) = sqlx::query_as(
        "select (select count(*) from eco_api_usage where eco_id = $1),
                coalesce((select sum(recorded_units) from eco_usage_counters where eco_id = $1), 0)::bigint,
                coalesce((select sum(units_count) from eco_usage_daily where eco_id = $1), 0)::bigint",
    )
    .bind(eco_id)
    .fetch_one(pool)
    .await?;
    Ok(Counted { rows, units, daily })
}

/// Units consumed of the quota: granted, and recorded without an admission.
pub(crate) async fn consumed(pool: &PgPool, eco_id: &str) -> Result<(i64, i64)> {
    Ok(sqlx::query_as(
        "select coalesce((select sum(granted_units - returned_units) from eco_quota_usage where eco_id = $1), 0)::bigint,
                coalesce((select sum(unadmitted_units) from eco_usage_counters where eco_id = $1), 0)::bigint",
    )
    .bind(eco_id)
    .fetch_one(pool)
    .await?)
}

/// Returns once a query says true.
pub(crate) async fn until(pool: &PgPool, query: &'static str) -> Result<()> {
    while !sqlx::query_scalar::<_, bool>(query).fetch_one(pool).await? {}
    Ok(())
}

/// A flush waits for the counters.
pub(crate) const A_FLUSH_WAITS: &str = "select exists (
    select from pg_locks l join pg_database d on d.oid = l.database
    where d.datname = current_database() and not l.granted and l.relation = 'eco_usage_counters'::regclass)";

/// Keeps flushes at work until the transaction ends.
pub(crate) async fn hold_flushes(db: &TestDb) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("lock table eco_usage_counters in share mode").execute(&mut *holder).await?;
    Ok(holder)
}
