//! `eco_audit_log`: who changed what. The database writes it, by triggers; who acts is told to it by
//! [`nexus_kit::db::set_actor`].

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

/// An entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Number, growing.
    pub audit_id: i64,
    /// When.
    pub audit_time: DateTime<Utc>,
    /// On whose behalf.
    pub actor: String,
    /// The kind of thing that was changed.
    pub subject: String,
    /// What was done to it.
    pub action: String,
    /// Which of its kind.
    pub subject_id: String,
    /// Account, if it is one's.
    pub eco_id: Option<String>,
    /// As it was; `None`: it is new.
    pub before: Option<Value>,
    /// As it is.
    pub after: Option<Value>,
}

/// Entries, newest first, before a number; of an account, if one is named.
#[tracing::instrument(name = "db.eco_audit_log.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    eco_id: Option<&str>,
    before: Option<i64>,
    limit: i64,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        "select audit_id, audit_time, actor, subject, action, subject_id, eco_id, before, after
         from eco_audit_log
         where ($1::text is null or eco_id = $1) and ($2::bigint is null or audit_id < $2)
         order by audit_id desc
         limit $3",
        eco_id,
        before,
        limit,
    )
    .fetch_all(db)
    .await
}
