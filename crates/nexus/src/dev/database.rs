//! The database: a private cluster with a database that `nexus dev` made, or the one that DATABASE_URL
//! names.
//!
//! A database of ours carries a mark (schema `nexus_dev`) from the moment it has its name: it is made and
//! migrated under another name, marked, and then renamed. So a killed run leaves no database that is
//! half-made, or whose origin is unknown.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nexus_kit::db;
use nexus_pg::{Cluster, Options};
use secrecy::ExposeSecret;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions};

use super::{DevArgs, folder::Folder};

const NAME: &str = "nexus";
const UNFINISHED: &str = "nexus_unfinished";
/// The summaries follow the counters within a second; the demo data's take a little longer.
const SUMMARIES_WITHIN: Duration = Duration::from_secs(60);

/// A database, migrated.
pub(crate) struct Database {
    url: String,
    cluster: Option<Cluster>,
}

/// What was decided about demo data in a database of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DemoState {
    /// To be put in, but not yet there: the first run was interrupted, or is this one.
    Wanted,
    /// There.
    Loaded,
    /// The database was made with `--empty`.
    Declined,
    /// Not a database of ours.
    Foreign,
}

impl Database {
    /// Starts the private cluster, or connects to the given database, and brings the schema up to date.
    pub(crate) async fn start(args: &DevArgs, folder: &Folder) -> Result<Self> {
        if let Some(url) = args.database_url() {
            let options = db::options(url)?.disable_statement_logging();
            let url = url.expose_secret().to_owned();
            let mut connection = PgConnection::connect_with(&options)
                .await
                .context("connecting to DATABASE_URL (--database-url)")?;
            refuse_others(&mut connection).await?;
            db::migrate(&mut connection).await.context("migrating the database of DATABASE_URL")?;
            connection.close().await?;
            return Ok(Self { url, cluster: None });
        }
        let options = match folder.postgres() {
            Some(path) => Options::persistent(path),
            None => Options::ephemeral(),
        };
        let cluster = Cluster::start(options, &|message| eprintln!("nexus: {message}")).await?;
        if let Err(error) = ensure_database(&cluster, args.wants_demo()).await {
            cluster.stop().await?;
            return Err(error);
        }
        Ok(Self { url: cluster.url(NAME), cluster: Some(cluster) })
    }

    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The private cluster; `None`: the database is somebody else's.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// A connection as whoever the URL names; in the private cluster a superuser.
    pub(crate) async fn connect(&self) -> Result<PgConnection> {
        connect_quietly(&self.url).await.context("connecting to the database")
    }

    /// Waits until billing-svc has taken up every change of the counters, so that the first figures shown
    /// are right. Not for a database of somebody else's, whose queue others fill.
    pub(crate) async fn summaries_are_current(&self) -> Result<()> {
        if self.cluster.is_none() {
            return Ok(());
        }
        let mut connection = self.connect().await?;
        let deadline = tokio::time::Instant::now() + SUMMARIES_WITHIN;
        while sqlx::query_scalar!(r#"select exists (select from eco_usage_changes) as "waiting!""#)
            .fetch_one(&mut connection)
            .await?
        {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "billing-svc has not taken up the usage within {SUMMARIES_WITHIN:?}"
            );
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        connection.close().await?;
        Ok(())
    }

    /// Stops the private cluster.
    pub(crate) async fn stop(self) -> Result<()> {
        match self.cluster {
            Some(cluster) => cluster.stop().await.context("stopping PostgreSQL"),
            None => Ok(()),
        }
    }
}

/// Refuses a database with tables of something else: DATABASE_URL is often exported for another program.
async fn refuse_others(connection: &mut PgConnection) -> Result<()> {
    let others: Option<String> = sqlx::query_scalar(
        "select min(tablename::text) from pg_catalog.pg_tables
         where schemaname = 'public' and to_regclass('public._sqlx_migrations') is null",
    )
    .fetch_one(connection)
    .await?;
    match others {
        None => Ok(()),
        Some(table) => bail!(
            "the database of DATABASE_URL has tables of something else, such as `{table}`: unset it for a private one, or run `nexus migrate` first if it is meant"
        ),
    }
}

/// Migrating and seeding take their time; that is nothing to warn of.
async fn connect_quietly(url: &str) -> sqlx::Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    PgConnection::connect_with(&options.disable_statement_logging()).await
}

async fn ensure_database(cluster: &Cluster, wants_demo: bool) -> Result<()> {
    let mut server = PgConnection::connect(&cluster.url("postgres")).await?;
    let exists: bool = sqlx::query_scalar!(
        r#"select exists (select from pg_catalog.pg_database where datname = $1) as "exists!""#,
        NAME
    )
    .fetch_one(&mut server)
    .await?;
    if exists {
        let mut connection = connect_quietly(&cluster.url(NAME)).await?;
        db::migrate(&mut connection).await.context("migrating the database")?;
        connection.close().await?;
    } else {
        server.execute("drop database if exists nexus_unfinished with (force)").await?;
        server.execute("create database nexus_unfinished").await?;
        let mut connection = connect_quietly(&cluster.url(UNFINISHED)).await?;
        db::migrate(&mut connection).await.context("making the schema")?;
        mark(&mut connection, wants_demo).await?;
        connection.close().await?;
        server.execute("alter database nexus_unfinished rename to nexus").await?;
    }
    server.close().await?;
    Ok(())
}

// The mark is no part of the schema that the services share, so its statements are not checked at compile
// time as theirs are.
async fn mark(connection: &mut PgConnection, wants_demo: bool) -> Result<()> {
    connection
        .execute(
            "create schema nexus_dev;
             create table nexus_dev.origin (
                 singleton   boolean     primary key default true check (singleton),
                 made_time   timestamptz not null default now(),
                 demo        text        not null check (demo in ('wanted', 'loaded', 'declined')))",
        )
        .await?;
    sqlx::query("insert into nexus_dev.origin (demo) values ($1)")
        .bind(if wants_demo { "wanted" } else { "declined" })
        .execute(connection)
        .await?;
    Ok(())
}

/// What was decided about demo data.
pub(crate) async fn demo_state(connection: &mut PgConnection) -> Result<DemoState> {
    let ours: bool = sqlx::query_scalar("select to_regclass('nexus_dev.origin') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !ours {
        return Ok(DemoState::Foreign);
    }
    let word: String = sqlx::query_scalar("select demo from nexus_dev.origin").fetch_one(connection).await?;
    Ok(match word.as_str() {
        "wanted" => DemoState::Wanted,
        "loaded" => DemoState::Loaded,
        _ => DemoState::Declined,
    })
}

/// Notes that the demo data is there; in the transaction that put it there.
pub(crate) async fn demo_loaded(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("update nexus_dev.origin set demo = 'loaded'").execute(connection).await?;
    Ok(())
}
