//! Migrations, pools that act as one database role, and what an error of the database means.

use std::{future::Future, io, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    Connection, Executor, PgConnection, PgPool, Postgres, Row, SqlSafeStr, Transaction,
    migrate::Migrator,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, error::Elapsed, timeout_at};
use tracing::Instrument;

use crate::config::DbArgs;

/// How long a statement of a role's session waits for a lock.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a connection.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(3);
/// How long readiness waits for a connection of the pool.
const POOL_WAIT: Duration = Duration::from_secs(1);
/// How long readiness waits for the database: less than whoever asks for it waits.
const READY_WITHIN: Duration = Duration::from_millis(1800);

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
                // Filters may be absent and pages far away: each statement is planned for its arguments.
                "set role nexus_analytics; set default_transaction_read_only = on; set plan_cache_mode = force_custom_plan; set lock_timeout = '5s'; set idle_in_transaction_session_timeout = '5s'; set statement_timeout = '30s'; set timezone = 'UTC'"
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

    /// What its sessions are called in the database.
    pub fn application(self) -> &'static str {
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
        .acquire_timeout(ACQUIRE_WITHIN)
        // `acquire` checks.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move { connection.execute(role.session()).await.map(|_| ()) })
        })
        .connect_lazy_with(options);
    Ok(pool)
}

/// A connection of the pool that answers and is in no transaction. Use this and not the pool's own `acquire`:
/// that one closes the connection it has at hand when its caller goes away while it is checked or made, so
/// that callers who only come and go would keep the pool empty. Here only waiting is given up; what has begun
/// is finished, and the connection goes back.
pub async fn acquire(pool: &PgPool) -> sqlx::Result<PoolConnection<Postgres>> {
    let deadline = Instant::now() + ACQUIRE_WITHIN;
    loop {
        let connection = timeout_at(deadline, any(pool)).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        if let Some(checked) = to_its_end(check(connection, deadline)).await? {
            return Ok(checked);
        }
    }
}

/// Tells the audit log on whose behalf the transaction changes things (see [`crate::auth::Caller::subject`]).
#[tracing::instrument(name = "db.eco_audit_log.set_actor", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_actor(connection: &mut PgConnection, actor: &str) -> sqlx::Result<()> {
    sqlx::query("select set_config('nexus.actor', $1, true)").bind(actor).execute(connection).await?;
    Ok(())
}

/// A transaction on a connection of the pool; see [`acquire`].
pub async fn begin(pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
    Transaction::begin(acquire(pool).await?, None).await
}

/// A transaction that only reads, and sees one state of the database throughout; see [`acquire`].
pub async fn snapshot(pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
    let statement = "begin isolation level repeatable read read only";
    Transaction::begin(acquire(pool).await?, Some(statement.into_sql_str())).await
}

/// A connection that may be broken. Only where the pool may have to make one is there more than waiting to give
/// up: it hands out one that it has without asking the database.
async fn any(pool: &PgPool) -> sqlx::Result<PoolConnection<Postgres>> {
    if let Some(idle) = pool.try_acquire() {
        return Ok(idle);
    }
    let pool = pool.clone();
    let may_grow = pool.size() < pool.options().get_max_connections();
    #[expect(clippy::disallowed_methods, reason = "its caller cannot end it where it matters")]
    let acquired = async move { pool.acquire().await };
    if may_grow { to_its_end(acquired).await } else { acquired.await }
}

/// The connection, if it is alive and in no transaction by the deadline; else it is closed.
///
/// A caller that goes away while `begin` waits for the server leaves a transaction open that sqlx does not
/// know of. Whoever had that connection next would work within it: with its `now()`, and with writes that are
/// never committed. In the simple protocol a statement of its own begins a transaction of its own, so the two
/// clocks agree; within an older transaction they do not.
async fn check(
    mut connection: PoolConnection<Postgres>,
    deadline: Instant,
) -> sqlx::Result<Option<PoolConnection<Postgres>>> {
    let asked = connection.fetch_one("select now() = statement_timestamp()");
    let outcome = timeout_at(deadline, asked).await.map(|answer| answer.and_then(|row| row.try_get(0)));
    if let Ok(Ok(true)) = outcome {
        return Ok(Some(connection));
    }
    drop(connection.detach());
    outcome.map(|_| None).map_err(|_elapsed| sqlx::Error::PoolTimedOut)
}

/// The result, or that the database is away where there was none in time. The connection is closed then: the
/// pool would wait for its answer before it opens another.
pub fn in_time<T>(
    result: Result<sqlx::Result<T>, Elapsed>,
    connection: PoolConnection<Postgres>,
) -> sqlx::Result<T> {
    result.unwrap_or_else(|_| {
        drop(connection.detach());
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the connection went silent")))
    })
}

/// Does the work in a task of its own, which goes on when the caller goes away.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = sqlx::Result<T>> + Send + 'static,
) -> sqlx::Result<T> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends.
        Err(_cancelled) => Err(sqlx::Error::PoolClosed),
    }
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

/// Why a database is of no use to a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It does not answer.
    #[error("{0}")]
    Away(String),
    /// It answers, and something is to be done about it.
    #[error("{0}")]
    Unfit(String),
}

/// Whether the database answers, takes us for the role and has the schema this program was built with; else
/// what is to be done.
pub async fn ready(pool: &PgPool, role: Role) -> Result<(), NotReady> {
    let silent = || NotReady::Away("the database does not answer in time".to_owned());
    tokio::time::timeout(READY_WITHIN, examined(pool, role)).await.unwrap_or_else(|_| Err(silent()))
}

async fn examined(pool: &PgPool, role: Role) -> Result<(), NotReady> {
    if let Ok(Ok(mut connection)) = tokio::time::timeout(POOL_WAIT, acquire(pool)).await {
        return schema(&mut connection).await;
    }
    // All in use, or none can be made: a pool does not tell why.
    let mut connection = match PgConnection::connect_with(&pool.connect_options()).await {
        Ok(connection) => connection,
        // There is no room for one more beside those that are at work.
        Err(error) if has_code(&error, TOO_MANY_CONNECTIONS) && pool.size() > 0 => return Ok(()),
        Err(error) => return Err(NotReady::of(&error, format!("cannot connect to the database: {error}"))),
    };
    connection.execute(role.session()).await.map_err(|e| {
        let role = role.name();
        NotReady::of(&e, format!("this login cannot act as {role} ({e}): `nexus migrate` makes that role, `grant {role} to …` lets a login act as it"))
    })?;
    schema(&mut connection).await
}

impl NotReady {
    fn of(error: &sqlx::Error, what: String) -> Self {
        if is_away(error) { Self::Away(what) } else { Self::Unfit(what) }
    }
}

async fn schema(connection: &mut PgConnection) -> Result<(), NotReady> {
    let newest = MIGRATOR.iter().map(|m| m.version).max().unwrap_or_default();
    let applied: i64 =
        sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
            .fetch_one(connection)
            .await
            .or_else(|e| {
                if has_code(&e, UNDEFINED_TABLE) { Ok(0) } else { Err(NotReady::of(&e, e.to_string())) }
            })?;
    if applied < newest {
        return Err(NotReady::Unfit(format!(
            "the database is at migration {applied}, this program needs {newest}: run `nexus migrate`"
        )));
    }
    Ok(())
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.code().as_deref() == Some(code))
}

/// Whether an error passes by itself: the caller may try again.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    is_away(error) || is_busy(error)
}

/// Whether an error means that the database is away, overloaded or restarting, for whoever asks.
pub fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        // 08 connection, 25006 a standby that takes no writes, 53 resources, 57P0x shutdown
        _ => is_of(error, &["08", "25006", "53", "57P0"]),
    }
}

/// Whether an error means that the database has no connection left, or no memory or disk: who has a connection may be
/// served all the same.
pub fn is_full(error: &sqlx::Error) -> bool {
    is_of(error, &["53"])
}

/// Whether an error means that others hold what this caller needs, or that it took too long: the database is there, and
/// does what others ask.
pub fn is_busy(error: &sqlx::Error) -> bool {
    // 55P03 lock time-out, 40001/40P01 lost a race, 57014 and 25P03 time-outs of a statement and of a transaction that
    // stood idle
    is_of(error, &["55P03", "40001", "40P01", "57014", "25P03"])
}

fn is_of(error: &sqlx::Error, classes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
}

/// Whether an error is a violation of the named constraint.
pub fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    matches!(error, sqlx::Error::Database(e) if e.constraint() == Some(constraint))
}
