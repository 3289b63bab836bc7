//! What the seeds of a run share: a private PostgreSQL with its defaults, a database of its own for each seed,
//! a folder for logs and journals, secrets.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use futures::TryStreamExt;
use nexus_core::id::EcoId;
use nexus_kit::{
    auth::{self, Scope},
    db,
};
use nexus_pg::{Cluster, Options};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// The migrated database that those of the seeds are copied from.
const TEMPLATE: &str = "nexus_template";
/// What is written to a failed seed's folder.
const TABLES: [&str; 15] = [
    "eco_api_usage",
    "eco_usage_counters",
    "eco_usage_hourly",
    "eco_usage_daily",
    "eco_usage_totals",
    "eco_quota_usage",
    "eco_quota_leases",
    "eco_usage_records",
    "eco_overage_charges",
    "eco_overage_runs",
    "eco_overage_run_accounts",
    "eco_settlements",
    "eco_subscriptions",
    "eco_ended_subscriptions",
    "eco_stripe_events",
];
/// Secrets of the replicas of one run, which listen on loopback.
const JWT_SECRET: &str = "users-of-the-harness-0123456789abcdef";
const SERVICE_TOKEN_SECRET: &str = "services-of-the-harness-0123456789abcdef";

/// An account whose user may do everything.
const ADMIN: &str = "eco_admin";

/// A running PostgreSQL and the folder of the run, which goes with it unless it is kept.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    folder: TempDir,
}

impl Stage {
    pub(crate) async fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("nexus-harness-")?;
        let cluster = Cluster::start(Options::ephemeral(), &|said| eprintln!("{said}")).await?;
        let mut connection = PgConnection::connect(&cluster.url("postgres")).await?;
        connection.execute(AssertSqlSafe(format!("create database {TEMPLATE}"))).await?;
        connection.close().await?;
        let mut template = PgConnection::connect(&cluster.url(TEMPLATE)).await?;
        db::migrate(&mut template).await.context("migrating")?;
        template.close().await?;
        Ok(Self { cluster, folder })
    }

    /// Makes the database and the folder of a seed.
    pub(crate) async fn seed(&self, kind: &str, number: u64) -> Result<Seed> {
        let name = format!("{kind}_{number}");
        let mut server = PgConnection::connect(&self.cluster.url("postgres")).await?;
        server.execute(AssertSqlSafe(format!("create database {name} template {TEMPLATE}"))).await?;
        server.close().await?;
        // It stands for one that was migrated itself, and not for a backup.
        let mut copy = PgConnection::connect(&self.cluster.url(&name)).await?;
        copy.execute(
            "update eco_database_identity
             set database_oid = (select oid::bigint from pg_database where datname = current_database())",
        )
        .await?;
        copy.close().await?;
        let folder = self.folder.path().join(&name);
        std::fs::create_dir(&folder)?;
        Ok(Seed { number, url: self.cluster.url(&name), name, folder })
    }

    /// Drops what a seed left that went well.
    pub(crate) async fn forget(&self, seed: Seed) -> Result<()> {
        let mut server = PgConnection::connect(&self.cluster.url("postgres")).await?;
        server.execute(AssertSqlSafe(format!("drop database {} with (force)", seed.name))).await?;
        server.close().await?;
        Ok(std::fs::remove_dir_all(seed.folder)?)
    }

    /// Ends the run; its folder stays where `keep` says so. Returns the folder then.
    pub(crate) async fn stop(self, keep: bool) -> Result<Option<PathBuf>> {
        self.cluster.stop().await?;
        if keep {
            return Ok(Some(self.folder.keep()));
        }
        self.folder.close()?;
        Ok(None)
    }
}

/// Settings that every replica has, whoever starts it.
pub(crate) fn secrets() -> [(&'static str, String); 3] {
    [
        ("JWT_SECRET", JWT_SECRET.to_owned()),
        ("SERVICE_TOKEN_SECRET", SERVICE_TOKEN_SECRET.to_owned()),
        ("ADMIN_ECO_IDS", ADMIN.to_owned()),
    ]
}

/// A token that replicas accept, also those whose clock is an hour ahead or behind.
pub(crate) fn token() -> Result<String> {
    let secret = SecretString::from(SERVICE_TOKEN_SECRET);
    let scopes = [Scope::UsageWrite, Scope::UsageCheck, Scope::BillingRun];
    Ok(auth::service_token(&secret, "nexus-harness", &scopes, Utc::now() + TimeDelta::days(1))?)
}

/// An admin's token.
pub(crate) fn admin_token() -> Result<String> {
    let expires = Utc::now() + TimeDelta::days(1);
    Ok(auth::user_token(
        &SecretString::from(JWT_SECRET),
        "nexus",
        None,
        &EcoId::parse(ADMIN)?,
        None,
        expires,
    )?)
}

/// The database and the folder of a seed.
pub(crate) struct Seed {
    pub(crate) number: u64,
    pub(crate) name: String,
    url: String,
    pub(crate) folder: PathBuf,
}

impl Seed {
    /// A session as superuser, straight to the server.
    pub(crate) async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.url).await?)
    }

    /// URL of the database, as superuser: a service takes its own role from there.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// PostgreSQL's socket.
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        let options: PgConnectOptions = self.url.parse()?;
        let folder = options.get_socket().context("the private PostgreSQL listens on a socket")?;
        Ok(folder.join(format!(".s.PGSQL.{}", options.get_port())))
    }

    /// Makes accounts on a plan, whose period began ten days ago.
    pub(crate) async fn accounts(&self, eco_ids: &[&str], plan: &str) -> Result<()> {
        let mut connection = self.connect().await?;
        sqlx::query("insert into eco_identities (eco_id) select unnest($1::text[])")
            .bind(eco_ids)
            .execute(&mut connection)
            .await?;
        sqlx::query(
            "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
             select unnest($1::text[]), $2, 1, 'active', now() - interval '10 days'",
        )
        .bind(eco_ids)
        .bind(plan)
        .execute(&mut connection)
        .await?;
        Ok(connection.close().await?)
    }

    /// Lets a plan include so many units.
    pub(crate) async fn include(&self, plan: &str, units: u32) -> Result<()> {
        let mut connection = self.connect().await?;
        sqlx::query("update eco_plans set included_units = $2 where plan = $1")
            .bind(plan)
            .bind(i64::from(units))
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }

    /// Caps what an account's overage may cost, as billing-svc does.
    pub(crate) async fn cap(&self, eco_id: &str, micros: u32) -> Result<()> {
        let mut connection = self.connect().await?;
        sqlx::query(
            "update eco_identities set spend_cap_micros = $2, spend_cap_epoch = spend_cap_epoch + 1
             where eco_id = $1",
        )
        .bind(eco_id)
        .bind(i64::from(micros))
        .execute(&mut connection)
        .await?;
        Ok(connection.close().await?)
    }

    /// Writes the tables to the folder, as CSV: the database goes with the run.
    pub(crate) async fn dump(&self) -> Result<()> {
        let mut connection = self.connect().await?;
        for table in TABLES {
            dump_table(&mut connection, table, &self.folder.join(format!("{table}.csv"))).await?;
        }
        Ok(connection.close().await?)
    }
}

async fn dump_table(connection: &mut PgConnection, table: &str, path: &Path) -> Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    let statement = format!("copy (select * from {table}) to stdout (format csv, header)");
    let mut rows = connection.copy_out_raw(&statement).await?;
    while let Some(chunk) = rows.try_next().await? {
        file.write_all(&chunk).await?;
    }
    Ok(file.flush().await?)
}
