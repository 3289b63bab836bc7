//! `eco_api_key_rotations`. Every function wants the key locked, so that one rotation of it runs at a time.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// A rotation that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Grace period as it was asked for.
    pub grace_ms: i64,
    /// Until when the secret before was to be accepted; a later rotation may have ended that.
    pub previous_expires: DateTime<Utc>,
}

/// The rotation that gave the key this secret.
#[tracing::instrument(name = "db.eco_api_key_rotations.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find(
    connection: &mut PgConnection,
    key_id: &str,
    secret_sha256: &[u8],
) -> sqlx::Result<Option<Rotation>> {
    sqlx::query_as!(
        Rotation,
        r#"select grace_period_ms as grace_ms,
                  rotated_time + grace_period_ms * interval '1 millisecond' as "previous_expires!"
           from eco_api_key_rotations where key_id = $1 and secret_sha256 = $2"#,
        key_id,
        secret_sha256,
    )
    .fetch_optional(connection)
    .await
}

/// How many old secrets of the key are valid.
#[tracing::instrument(name = "db.eco_api_key_rotations.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn count_in_grace(connection: &mut PgConnection, key_id: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from eco_api_key_rotations
           where key_id = $1 and previous_expire_time > now()"#,
        key_id,
    )
    .fetch_one(connection)
    .await
}

/// How often the key was rotated within 24 hours.
#[tracing::instrument(name = "db.eco_api_key_rotations.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn count_of_a_day(connection: &mut PgConnection, key_id: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from eco_api_key_rotations
           where key_id = $1 and rotated_time > now() - interval '24 hours'"#,
        key_id,
    )
    .fetch_one(connection)
    .await
}

/// Ends the grace of all old secrets of the key.
#[tracing::instrument(name = "db.eco_api_key_rotations.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end_grace(connection: &mut PgConnection, key_id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_api_key_rotations set previous_expire_time = now()
         where key_id = $1 and previous_expire_time > now()",
        key_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes a rotation: the secret that the key has yet is its previous one. Returns until when that is
/// accepted.
#[tracing::instrument(name = "db.eco_api_key_rotations.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    connection: &mut PgConnection,
    key_id: &str,
    secret_sha256: &[u8],
    grace_ms: i64,
) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(
        "insert into eco_api_key_rotations
                (key_id, secret_sha256, previous_secret_sha256, previous_expire_time, grace_period_ms)
         select key_id, $2, secret_sha256, now() + $3::bigint * interval '1 millisecond', $3
         from eco_api_keys where key_id = $1
         returning previous_expire_time",
        key_id,
        secret_sha256,
        grace_ms,
    )
    .fetch_one(connection)
    .await
}
