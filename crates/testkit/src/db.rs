//! A private database per test, cloned from a migrated template.

use std::{env, thread, time::Duration};

use anyhow::{Context, Result};
use chrono::{Timelike, Utc};
use nexus_kit::{config::DbArgs, db::MIGRATOR};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// URL of a superuser on the server that tests use; `./test` (or `with-postgres`) sets it.
pub const SERVER_VARIABLE: &str = "NEXUS_TEST_DATABASE_URL";

/// A database of one test; dropped with this value.
pub struct TestDb {
    name: String,
    url: String,
    /// Connections as superuser: for seeds and for looking at tables.
    pub pool: PgPool,
}

impl TestDb {
    /// A fresh migrated database.
    pub async fn new() -> Result<Self> {
        within_a_day().await;
        let server = server()?;
        let mut connection =
            PgConnection::connect_with(&server).await.context("connecting to the test server")?;
        let template = template(&mut connection, &server).await?;
        let copy = Self::clone_of(&template).await?;
        // It stands for one that was migrated itself.
        sqlx::query(
            "update eco_database_identity
             set database_oid = (select oid::bigint from pg_database where datname = current_database())",
        )
        .execute(&copy.pool)
        .await?;
        Ok(copy)
    }

    /// A copy of it as it is now, which nobody else may be connected to, in the same server: as a backup of it is that was
    /// loaded there.
    pub async fn restored(&self) -> Result<Self> {
        self.pool.close().await;
        Self::clone_of(&self.name).await
    }

    async fn clone_of(template: &str) -> Result<Self> {
        let server = server()?;
        let mut connection =
            PgConnection::connect_with(&server).await.context("connecting to the test server")?;
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        let create = format!("create database {name} template {template} strategy wal_log");
        connection.execute(AssertSqlSafe(create)).await.context("cloning a database")?;
        let pool =
            PgPoolOptions::new().max_connections(8).connect_with(server.clone().database(&name)).await?;
        let url = url(&server, &name)?;
        Ok(Self { name, url, pool })
    }

    /// Sets the database's clock back by so many seconds, for connections that are made from now on.
    pub async fn set_clock_back(&self, seconds: u32) -> Result<()> {
        let clock = |name: &str| {
            format!(
                "create function slow.{name}() returns timestamptz language sql stable
                 as $$ select pg_catalog.{name}() - interval '{seconds} seconds' $$;"
            )
        };
        let (now, statement, name) = (clock("now"), clock("statement_timestamp"), &self.name);
        let set = format!(
            "create schema slow; grant usage on schema slow to public; {now} {statement}
             alter database {name} set search_path = slow, pg_catalog, public;"
        );
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&self.pool).await.context("setting the clock back")?;
        Ok(())
    }

    /// Its URL, as superuser: a service takes its own role from there.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Settings of a service that uses it.
    pub fn args(&self) -> DbArgs {
        DbArgs { database_url: self.url.clone().into(), database_max_connections: 8 }
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        let name = self.name.clone();
        let drop_it = move || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let mut connection = PgConnection::connect_with(&server()?).await?;
                connection
                    .execute(AssertSqlSafe(format!("drop database if exists {name} with (force)")))
                    .await?;
                Ok(())
            })
        };
        match thread::spawn(drop_it).join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("test database {} stays behind: {error}", self.name),
            Err(_) => eprintln!("test database {} stays behind", self.name),
        }
    }
}

/// Waits for midnight (UTC) if that is near, so that what a test calls today, yesterday or this month, to seed or lock it
/// and to look at it later, is the same all the time.
async fn within_a_day() {
    /// Longer than nearly all tests take.
    const TEST_SECONDS: u32 = 20;
    let left = 86_400 - Utc::now().num_seconds_from_midnight();
    if left <= TEST_SECONDS {
        tokio::time::sleep(Duration::from_secs(left.into())).await;
    }
}

fn server() -> Result<PgConnectOptions> {
    let url = env::var(SERVER_VARIABLE).with_context(|| {
        format!("{SERVER_VARIABLE} is not set: run the tests with ./test, or a single one with `./test NAME`")
    })?;
    Ok(url.parse()?)
}

/// The template of the present migrations, made by whichever test comes first.
async fn template(connection: &mut PgConnection, server: &PgConnectOptions) -> Result<String> {
    let digest = MIGRATOR
        .iter()
        .flat_map(|m| m.checksum.iter())
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let name = format!("template_{digest:016x}");
    let lock = digest as i64;
    sqlx::query("select pg_advisory_lock($1)").bind(lock).execute(&mut *connection).await?;
    let made = make_template(connection, server, &name).await;
    sqlx::query("select pg_advisory_unlock($1)").bind(lock).execute(&mut *connection).await?;
    made.context("making the template database")?;
    Ok(name)
}

async fn make_template(connection: &mut PgConnection, server: &PgConnectOptions, name: &str) -> Result<()> {
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(name)
        .fetch_one(&mut *connection)
        .await?;
    if exists {
        return Ok(());
    }
    let raw = format!("{name}_raw");
    connection.execute(AssertSqlSafe(format!("drop database if exists {raw} with (force)"))).await?;
    connection.execute(AssertSqlSafe(format!("create database {raw}"))).await?;
    let mut fresh = PgConnection::connect_with(&server.clone().database(&raw)).await?;
    MIGRATOR.run_direct(None, &mut fresh, false).await?;
    fresh.close().await?;
    connection.execute(AssertSqlSafe(format!("alter database {raw} rename to {name}"))).await?;
    Ok(())
}

fn url(server: &PgConnectOptions, database: &str) -> Result<String> {
    let given = env::var(SERVER_VARIABLE)?;
    let current = server.get_database().unwrap_or("postgres");
    let (before, after) = given
        .split_once(&format!("/{current}"))
        .filter(|(_, after)| after.is_empty() || after.starts_with('?'))
        .with_context(|| {
            format!("{SERVER_VARIABLE} must name its database, e.g. postgres:///postgres?host=/tmp")
        })?;
    Ok(format!("{before}/{database}{after}"))
}
