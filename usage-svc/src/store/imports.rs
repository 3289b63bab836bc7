//! `eco_imports`: the time shift of each imported log file.

use sqlx::PgConnection;

/// Keeps the shift unless the file has one; whether it was kept.
#[tracing::instrument(name = "db.eco_imports.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(connection: &mut PgConnection, digest: &str, shift_ms: i64) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_imports (file_digest, shift_ms) values ($1, $2) on conflict do nothing",
        digest,
        shift_ms,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The shift of a file.
#[tracing::instrument(name = "db.eco_imports.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn shift_ms(connection: &mut PgConnection, digest: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!("select shift_ms from eco_imports where file_digest = $1", digest)
        .fetch_one(connection)
        .await
}
