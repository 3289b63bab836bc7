//! `eco_mrr_movements`: the history of the MRR. Triggers write it; here only what nobody wrote a row for.

use sqlx::PgConnection;

/// Writes down the movements of accounts whose plan came into force by itself, at most so many; returns how many accounts
/// there were. Those that another is at are left to it.
#[tracing::instrument(name = "db.eco_mrr_movements.note_due", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn note_due(db: &mut PgConnection, most: i32) -> sqlx::Result<i32> {
    sqlx::query_scalar!(r#"select nexus_note_due_mrr($1) as "noted!""#, most).fetch_one(db).await
}
