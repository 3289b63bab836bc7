//! `eco_api_keys`.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::judge::Key;

/// A key as it is stored: the secret only as its hash.
#[derive(Debug, Clone)]
pub struct ApiKeyRow {
    pub key_id: String,
    pub eco_id: String,
    pub secret_sha256: Vec<u8>,
    pub name: String,
    pub scopes: Vec<String>,
    pub test_mode: bool,
    pub active: bool,
    pub created_time: DateTime<Utc>,
    pub last_used_time: Option<DateTime<Utc>>,
}

/// A key to store.
#[derive(Debug, Clone, Copy)]
pub struct NewApiKey<'a> {
    pub key_id: &'a str,
    pub eco_id: &'a str,
    pub secret_sha256: &'a [u8],
    pub name: &'a str,
    pub scopes: &'a [String],
    pub test_mode: bool,
}

/// The keys that exist of these, as recording needs them.
#[tracing::instrument(name = "db.eco_api_keys.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn for_recording(
    connection: &mut PgConnection,
    ids: &[&str],
) -> sqlx::Result<HashMap<String, Key>> {
    let rows = sqlx::query!(
        "select key_id, eco_id, test_mode from eco_api_keys where key_id = any($1)",
        ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|r| (r.key_id, Key { eco_id: r.eco_id, test_mode: r.test_mode })).collect())
}

/// A key by its public id.
#[tracing::instrument(name = "db.eco_api_keys.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn by_id(connection: &mut PgConnection, key_id: &str) -> sqlx::Result<Option<ApiKeyRow>> {
    sqlx::query_as!(
        ApiKeyRow,
        r#"select key_id, eco_id, secret_sha256, name, scopes, test_mode, status = 'active' as "active!",
                  created_time, last_used_time
           from eco_api_keys where key_id = $1"#,
        key_id,
    )
    .fetch_optional(connection)
    .await
}

/// Stores a key unless its id is taken; whether it was stored.
#[tracing::instrument(name = "db.eco_api_keys.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(connection: &mut PgConnection, key: NewApiKey<'_>) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_api_keys (key_id, eco_id, secret_sha256, name, scopes, test_mode)
         values ($1, $2, $3, $4, $5, $6) on conflict (key_id) do nothing",
        key.key_id,
        key.eco_id,
        key.secret_sha256,
        key.name,
        key.scopes,
        key.test_mode,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that a key was used, at most once a minute so that a busy key costs no write per call.
#[tracing::instrument(name = "db.eco_api_keys.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn note_use(connection: &mut PgConnection, key_id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_api_keys set last_used_time = now()
         where key_id = $1 and (last_used_time is null or last_used_time < now() - interval '1 minute')",
        key_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}
