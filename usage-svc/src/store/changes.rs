//! Notifications: no table, but the channels of the change feed.

use sqlx::{Executor, Postgres};

/// What is notified to everyone.
pub const CHANNEL: &str = "nexus_changes";

/// Notifies whoever listens on the channel; heard once committed.
#[tracing::instrument(name = "db.notify", level = "debug", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn notify(
    connection: impl Executor<'_, Database = Postgres>,
    channel: &str,
    payload: &str,
) -> sqlx::Result<()> {
    sqlx::query!("select pg_notify($1, $2)", channel, payload).execute(connection).await?;
    Ok(())
}
