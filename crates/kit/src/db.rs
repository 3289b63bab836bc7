//! Migrations, pools that act as one database role, and what an error of the database means.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    Connection, Executor, PgConnection, PgPool, Row,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::config::DbArgs;

/// How long readiness waits for a connection of the pool.
const POOL_WAIT: Duration = Duration::from_secs(1);

const UNDEFINED_TABLE: &str = "42P01";
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The schema, from the folder `migrations/`.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// Role a service acts as; each has only its grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// usage-svc.
    Usage,
    /// billing-svc.
    Billing,
    /// analytics-svc.
    Analytics,
}

impl Role {
    fn session(self) -> &'static str {
        // An acknowledgement means durable, whatever the server's default. A lock that is not had and a
        // transaction that is forgotten end, rather than hold others up.
        match self {
            Role::Usage => {
                "set role nexus_usage; set synchronous_commit = on; set lock_timeout = '5s'; set idle_in_transaction_session_timeout = '5s'; set statement_timeout = '30s'; set timezone = 'UTC'"
            }
            Role::Billing => {
                "set role nexus_billing; set synchronous_commit = on; set lock_timeout = '5s'; set idle_in_transaction_session_timeout = '5s'; set statement_timeout = '30s'; set timezone = 'UTC'"
            }
            Role::Analytics => {
                "set role nexus_analytics; set default_transaction_read_only = on; set lock_timeout = '5s'; set idle_in_transaction_session_timeout = '5s'; set statement_timeout = '30s'; set timezone = 'UTC'"
            }
        }
    }

    /// Its name in the database.
    fn name(self) -> &'static str {
        match self {
            Role::Usage => "nexus_usage",
            Role::Billing => "nexus_billing",
            Role::Analytics => "nexus_analytics",
        }
    }

    fn application(self) -> &'static str {
        match self {
            Role::Usage => "nexus usage",
            Role::Billing => "nexus billing",
            Role::Analytics => "nexus analytics",
        }
    }
}

/// The database URL cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("DATABASE_URL (--database-url) is not a PostgreSQL URL, such as postgres://user@host/nexus: {0}")]
pub struct BadUrl(String);

/// Reads a database URL; the error does not repeat it.
pub fn options(url: &SecretString) -> Result<PgConnectOptions, BadUrl> {
    let url = url.expose_secret();
    let known = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    let options = if known {
        url.parse().map_err(|e: sqlx::Error| e.to_string())
    } else {
        Err("another scheme".into())
    };
    options.map_err(BadUrl)
}

/// A pool whose sessions act as the role. Connects when first used, so that a server starts while the
/// database is away and is ready when it comes.
pub fn pool(args: &DbArgs, role: Role) -> Result<PgPool, BadUrl> {
    let options = options(&args.database_url)?.application_name(role.application());
    let pool = PgPoolOptions::new()
        .max_connections(args.database_max_connections)
        .acquire_timeout(Duration::from_secs(3))
        // In place of sqlx's ping: it finds a broken connection as well.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(outside_a_transaction(connection)))
        .after_connect(move |connection, _| {
            Box::pin(async move { connection.execute(role.session()).await.map(|_| ()) })
        })
        .connect_lazy_with(options);
    Ok(pool)
}

/// Whether a connection from the pool is alive and in no transaction; else it is closed and another taken.
///
/// A caller that goes away while `begin` waits for the server leaves a transaction open that sqlx does not
/// know of. Whoever had that connection next would work within it: with its `now()`, and with writes that are
/// never committed. In the simple protocol a statement of its own begins a transaction of its own, so the two
/// clocks agree; within an older transaction they do not.
async fn outside_a_transaction(connection: &mut PgConnection) -> sqlx::Result<bool> {
    connection.fetch_one("select now() = statement_timestamp()").await?.try_get(0)
}

/// Why a database has not this version's schema.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Its tables are not from our migrations.
    #[error("it holds `{0}` and was not made by `nexus migrate`: give this program a database of its own")]
    Foreign(String),
    /// The connection's first schema is another.
    #[error("new tables would not go into the schema `public` (search_path)")]
    NotPublic,
    /// A migration failed.
    #[error(transparent)]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database is away.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Brings a database to this version's schema. One at a time, by a lock; safe to run again.
pub async fn migrate(connection: &mut PgConnection) -> Result<(), MigrateError> {
    // Found out before the first migration is applied, and not by one in the middle that fails.
    let (public, foreign): (bool, Option<String>) = sqlx::query_as(
        "select current_schema() is not distinct from 'public',
                (select min(c.relname::text) from pg_catalog.pg_class c
                 join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'public'
                 where c.relname like 'eco!_%' escape '!' and to_regclass('public._sqlx_migrations') is null)",
    )
    .fetch_one(&mut *connection)
    .await?;
    match foreign {
        _ if !public => Err(MigrateError::NotPublic),
        Some(table) => Err(MigrateError::Foreign(table)),
        None => Ok(MIGRATOR.run(connection).await?),
    }
}

/// Whether the database answers, takes us for the role and has the schema this program was built with; else
/// what is to be done.
pub async fn ready(pool: &PgPool, role: Role) -> Result<(), String> {
    if let Ok(Ok(mut connection)) = tokio::time::timeout(POOL_WAIT, pool.acquire()).await {
        return schema(&mut connection).await;
    }
    // All in use, or none can be made: a pool does not tell why.
    let mut connection = match PgConnection::connect_with(&pool.connect_options()).await {
        Ok(connection) => connection,
        // There is no room for one more beside those that are at work.
        Err(error) if has_code(&error, TOO_MANY_CONNECTIONS) && pool.size() > 0 => return Ok(()),
        Err(error) => return Err(format!("cannot connect to the database: {error}")),
    };
    connection.execute(role.session()).await.map_err(|e| {
        let role = role.name();
        format!("this login cannot act as {role} ({e}): `nexus migrate` makes that role, `grant {role} to …` lets a login act as it")
    })?;
    schema(&mut connection).await
}

async fn schema(connection: &mut PgConnection) -> Result<(), String> {
    let newest = MIGRATOR.iter().map(|m| m.version).max().unwrap_or_default();
    let applied: i64 =
        sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
            .fetch_one(connection)
            .await
            .or_else(|e| if has_code(&e, UNDEFINED_TABLE) { Ok(0) } else { Err(e.to_string()) })?;
    if applied < newest {
        return Err(format!(
            "the database is at migration {applied}, this program needs {newest}: run `nexus migrate`"
        ));
    }
    Ok(())
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.code().as_deref() == Some(code))
}

/// Whether an error means that the database is away, overloaded or restarting: the caller may try again.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        // 08 connection, 53 resources, 57P0x shutdown, 55P03 lock timeout, 40001/40P01 lost a race, 57014 and
        // 25P03 time-outs of a statement and of a transaction that stood idle
        sqlx::Error::Database(e) => e.code().is_some_and(|code| {
            ["08", "53", "57P0", "55P03", "40001", "40P01", "57014", "25P03"]
                .iter()
                .any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}

/// Whether an error is a violation of the named constraint.
pub fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.constraint() == Some(constraint))
}
