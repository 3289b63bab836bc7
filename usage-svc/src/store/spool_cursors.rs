//! `eco_spool_cursors`: how far each journal of a spool is drained.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::cursor::Cursor;

/// Where a journal's cursor is.
#[tracing::instrument(name = "db.eco_spool_cursors.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn position(connection: &mut PgConnection, journal: Uuid) -> sqlx::Result<Cursor> {
    let row = sqlx::query!(
        r#"select next_number, array(select lower(r) from unnest(missing) r order by r) as "from!",
                  array(select upper(r) from unnest(missing) r order by r) as "to!"
           from eco_spool_cursors where journal_id = $1"#,
        journal
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map_or_else(Cursor::default, |row| {
        let missing = row.from.into_iter().zip(row.to).map(|(from, to)| from..to).collect();
        Cursor { next: row.next_number, missing }
    }))
}

/// Moves it over these events; a serialization failure where it is not at `from`, or one of them is drained. See
/// `nexus_advance_spool_cursor`.
#[tracing::instrument(name = "db.eco_spool_cursors.advance", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn advance(
    connection: &mut PgConnection,
    journal: Uuid,
    (from, to): (i64, i64),
    numbers: &[i64],
) -> sqlx::Result<()> {
    sqlx::query!("select nexus_advance_spool_cursor($1, $2, $3, $4)", journal, from, to, numbers)
        .execute(connection)
        .await?;
    Ok(())
}
