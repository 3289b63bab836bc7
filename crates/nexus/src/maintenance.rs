//! `nexus migrate` and `nexus rollup`: work on a database directly.

use std::process::ExitCode;

use anyhow::{Context, Result};
use chrono::NaiveDate;
use clap::Args;
use nexus_kit::{
    config::DbArgs,
    db::{self, MIGRATOR, Role},
};
use nexus_usage::app::rebuild_day;
use secrecy::SecretString;
use sqlx::{ConnectOptions, Connection, PgConnection};

pub(crate) const MIGRATE_HELP: &str = "\
Example:
  DATABASE_URL=postgres://owner@db/nexus nexus migrate
Prints what was applied. Safe to run twice, also at once: a lock lets one at a time in.";

pub(crate) const ROLLUP_HELP: &str = "\
Example:
  nexus rollup 2026-11-23
Acts as the role nexus_usage. Recording of that day waits meanwhile. A day whose raw log is not wholly
retained is refused.";

#[derive(Args)]
pub(crate) struct DatabaseArgs {
    /// PostgreSQL, e.g. postgres://user@host/nexus
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: SecretString,
}

#[derive(Args)]
pub(crate) struct RollupArgs {
    /// The day, in UTC: YYYY-MM-DD
    #[arg(value_name = "DATE")]
    day: NaiveDate,
    #[command(flatten)]
    database: DatabaseArgs,
}

impl DatabaseArgs {
    async fn connect(&self) -> Result<PgConnection> {
        // Migrations and rebuilds take their time; that is nothing to warn of.
        PgConnection::connect_with(&db::options(&self.database_url)?.disable_statement_logging())
            .await
            .context("connecting to DATABASE_URL (--database-url)")
    }
}

/// Applies the missing migrations and prints each.
pub(crate) async fn migrate(args: &DatabaseArgs) -> Result<ExitCode> {
    let mut connection = args.connect().await?;
    let before = applied(&mut connection).await?;
    db::migrate(&mut connection).await.context("migrating")?;
    let mut count = 0;
    for migration in MIGRATOR.iter().filter(|m| m.migration_type.is_up_migration()) {
        if !before.contains(&migration.version) {
            println!("applied {:04} {}", migration.version, migration.description);
            count += 1;
        }
    }
    if count == 0 {
        let newest = MIGRATOR.iter().map(|m| m.version).max().unwrap_or_default();
        println!("nothing to apply: the database is at migration {newest:04}");
    }
    connection.close().await?;
    Ok(ExitCode::SUCCESS)
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>> {
    let known: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !known {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(connection).await?)
}

/// Rebuilds a day's rollup.
pub(crate) async fn rollup(args: &RollupArgs) -> Result<ExitCode> {
    let database = DbArgs { database_url: args.database.database_url.clone(), database_max_connections: 1 };
    let pool = db::pool(&database, Role::Usage)?;
    let rows = rebuild_day::run(&pool, args.day)
        .await
        .with_context(|| format!("rebuilding the rollup of {}", args.day))?;
    println!("{}: {rows} rollup rows", args.day);
    pool.close().await;
    Ok(ExitCode::SUCCESS)
}
