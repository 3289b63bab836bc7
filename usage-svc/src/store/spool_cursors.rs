//! `eco_spool_cursors`: how far each journal of a spool is drained.

use sqlx::PgConnection;
use uuid::Uuid;

/// The number of a journal's first event that is not drained.
#[tracing::instrument(name = "db.eco_spool_cursors.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn position(connection: &mut PgConnection, journal: Uuid) -> sqlx::Result<i64> {
    let position =
        sqlx::query_scalar!("select next_number from eco_spool_cursors where journal_id = $1", journal)
            .fetch_optional(connection)
            .await?;
    Ok(position.unwrap_or(0))
}

/// Moves it; a serialization failure where it is not at `from`. See `nexus_advance_spool_cursor`.
#[tracing::instrument(name = "db.eco_spool_cursors.advance", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn advance(connection: &mut PgConnection, journal: Uuid, from: i64, to: i64) -> sqlx::Result<()> {
    sqlx::query!("select nexus_advance_spool_cursor($1, $2, $3)", journal, from, to)
        .execute(connection)
        .await?;
    Ok(())
}
