//! Sessions of the database, as `pg_stat_activity` shows them.

use chrono::{DateTime, Utc};
use nexus_kit::db::Role;
use sqlx::PgConnection;

/// A session, and since when it does what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session {
    /// The process that serves it.
    pub pid: i32,
    /// When its statement began.
    pub began: DateTime<Utc>,
}

/// Has the transaction act as the login itself, which may see and end its own sessions; a service's role may not.
#[tracing::instrument(name = "db.pg_stat_activity.set_role", level = "debug", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn as_login(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("set local role none").execute(connection).await?;
    Ok(())
}

/// Sessions of this login that wait for their client, in what they began more than 5 seconds ago: within a COPY of events
/// for what it sends, or, of usage-svc, until it takes what was found.
#[tracing::instrument(name = "db.pg_stat_activity.select", level = "debug", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn waiting(connection: &mut PgConnection) -> sqlx::Result<Vec<Session>> {
    sqlx::query_as!(
        Session,
        r#"select pid as "pid!", query_start as "began!" from pg_stat_activity
           where datname = current_database() and usename = session_user and state = 'active'
             and query_start < now() - interval '5 seconds'
             and (wait_event = 'ClientWrite' and application_name = $1
                  or wait_event = 'ClientRead'
                     and (query like 'copy eco_api_usage %' or query like 'copy pg_temp.eco_usage_stage %'))"#,
        Role::Usage.application(),
    )
    .fetch_all(connection)
    .await
}

/// Ends a session, unless it has gone on to another statement.
#[tracing::instrument(name = "db.pg_stat_activity.terminate", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn terminate(connection: &mut PgConnection, session: Session) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and query_start = $2",
        session.pid,
        session.began,
    )
    .fetch_optional(connection)
    .await?;
    Ok(())
}
