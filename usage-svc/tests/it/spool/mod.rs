//! Events while PostgreSQL is away, with a spool: acknowledged, and counted once when it is back.

mod crashes;
mod drained;
mod limits;
mod lost;
mod outage;
mod processes;

use std::path::{Path, PathBuf};

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{EventOutcome, UsageEvent};
use nexus_testkit::{db::TestDb, proxy::Proxy};
use nexus_usage::Config;
use tempfile::TempDir;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::*;

pub(crate) const SERVING: i32 = 1;
pub(crate) const NOT_SERVING: i32 = 2;

/// A server with a spool before a database that may go away; it knows the account `eco_a`, of which one event is
/// recorded.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) folder: TempDir,
    pub(crate) db: TestDb,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        Self::with(|config| config).await
    }

    pub(crate) async fn with(change: impl FnOnce(Config) -> Config) -> Result<Self> {
        let db = TestDb::new().await?;
        account(&db, "eco_a", Plan::Pro).await?;
        Self::before(db, change).await
    }

    /// Before a database with that account.
    pub(crate) async fn before(db: TestDb, change: impl FnOnce(Config) -> Config) -> Result<Self> {
        let proxy = Proxy::before(&db).await?;
        let folder = TempDir::new()?;
        let config = change(with_spool(config(proxy.args(&db)?), folder.path()));
        let server = Server::start_apart_with(config).await?;
        // What it learns before it hears of changes, it forgets.
        hear(&db, 1).await?;
        record(&server, event("eco_a")).await?;
        Ok(Self { server, proxy, folder, db })
    }

    /// Another server in the place of the one that ended, with the same spool.
    pub(crate) async fn restarted(self) -> Result<Self> {
        let server = Server::start_apart_with(self.config()?).await?;
        Ok(Self { server, ..self })
    }

    pub(crate) fn config(&self) -> Result<Config> {
        Ok(with_spool(config(self.proxy.args(&self.db)?), self.folder.path()))
    }

    /// The database goes away, and so many events are acknowledged all the same.
    pub(crate) async fn spool(&self, count: usize) -> Result<Vec<UsageEvent>> {
        self.proxy.cut();
        let events: Vec<UsageEvent> = (0..count).map(|_| event("eco_a")).collect();
        for event in &events {
            assert_eq!(record(&self.server, event.clone()).await?.outcome(), EventOutcome::Accepted);
        }
        assert_eq!(self.server.metric("nexus_usage_spool_events").await?, i64::try_from(count)?);
        Ok(events)
    }

    pub(crate) async fn sums(&self) -> Result<Sums> {
        sums(&self.db.pool, "eco_a").await
    }
}

pub(crate) fn with_spool(config: Config, folder: &Path) -> Config {
    Config { spool_dir: Some(folder.to_owned()), ..config }
}

/// Returns once nothing is left in the spool and the database takes events.
pub(crate) async fn drained(server: &Server) -> Result<()> {
    eventually(async || {
        let left = server.metric("nexus_usage_spool_events").await?;
        Ok(left + server.metric("nexus_usage_degraded").await? == 0)
    })
    .await
}

/// The health that the server's gRPC port tells.
pub(crate) async fn health(server: &Server) -> Result<i32> {
    health_of(server, "nexus.usage.v1.UsageService").await
}

/// That of one of its services.
pub(crate) async fn health_of(server: &Server, service: &str) -> Result<i32> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::new(server.channel()?).check(request).await?.into_inner().status)
}

/// Reasons of what is in quarantine, with the units.
pub(crate) async fn quarantine(db: &TestDb) -> Result<Vec<(String, i64)>> {
    let all = "select reason, units_count from eco_usage_quarantine order by reason, units_count";
    Ok(sqlx::query_as(all).fetch_all(&db.pool).await?)
}

/// Files of the spool with this extension.
pub(crate) fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let all = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.extension().is_some_and(|e| e == extension)).collect())
}
