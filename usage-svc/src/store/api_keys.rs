//! `eco_api_keys`.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use sqlx::PgConnection;

use crate::domain::{
    api_key::{ApiKey, Secret, Status, StoredKey},
    judge::Key,
};

struct Row {
    key_id: String,
    eco_id: String,
    name: String,
    scopes: Vec<String>,
    test_mode: bool,
    active: bool,
    created_time: DateTime<Utc>,
    last_used_time: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for ApiKey {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            key_id: row.key_id,
            eco_id: EcoId::parse(&row.eco_id).map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
            name: row.name,
            scopes: row.scopes,
            test_mode: row.test_mode,
            status: if row.active { Status::Active } else { Status::Revoked },
            created: row.created_time,
            last_used: row.last_used_time,
        })
    }
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
pub async fn by_id(connection: &mut PgConnection, key_id: &str) -> sqlx::Result<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        r#"select key_id, eco_id, name, scopes, test_mode, status = 'active' as "active!", created_time,
                  last_used_time
           from eco_api_keys where key_id = $1"#,
        key_id,
    )
    .fetch_optional(connection)
    .await?;
    row.map(ApiKey::try_from).transpose()
}

/// The keys that exist of these, with the secrets that open them by the database's clock.
#[tracing::instrument(name = "db.eco_api_keys.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn for_verification(connection: &mut PgConnection, ids: &[String]) -> sqlx::Result<Vec<StoredKey>> {
    let rows = sqlx::query!(
        r#"select key_id, eco_id, name, scopes, test_mode, status = 'active' as "active!", created_time,
                  last_used_time,
                  secret_sha256, replaced.secrets as "replaced!", replaced.grace_left_ms as "grace_left_ms!",
                  (last_used_time is null or last_used_time < now() - interval '1 minute') as "use_is_stale!"
           from eco_api_keys k,
                lateral (select coalesce(array_agg(r.previous_secret_sha256), '{}') as secrets,
                                coalesce(array_agg((extract(epoch from r.previous_expire_time - now()) * 1000)::bigint),
                                         '{}') as grace_left_ms
                         from eco_api_key_rotations r
                         where r.key_id = k.key_id and r.previous_expire_time > now()) as replaced
           where key_id = any($1)"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let replaced = row.replaced.into_iter().zip(row.grace_left_ms).map(|(sha256, left_ms)| Secret {
                sha256,
                // Rounded to nothing: it ends now.
                grace_left: Some(Duration::from_millis(left_ms.try_into().unwrap_or(0))),
            });
            let current = Secret { sha256: row.secret_sha256, grace_left: None };
            let secrets = std::iter::once(current).chain(replaced).collect();
            let key = Row {
                key_id: row.key_id,
                eco_id: row.eco_id,
                name: row.name,
                scopes: row.scopes,
                test_mode: row.test_mode,
                active: row.active,
                created_time: row.created_time,
                last_used_time: row.last_used_time,
            };
            Ok(StoredKey { key: key.try_into()?, secrets, use_is_stale: row.use_is_stale })
        })
        .collect()
}

/// A key, locked until the transaction ends; `owner`: only if it is this account's.
#[tracing::instrument(name = "db.eco_api_keys.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock(
    connection: &mut PgConnection,
    key_id: &str,
    owner: Option<&EcoId>,
) -> sqlx::Result<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        r#"select key_id, eco_id, name, scopes, test_mode, status = 'active' as "active!", created_time,
                  last_used_time
           from eco_api_keys where key_id = $1 and ($2::text is null or eco_id = $2) for update"#,
        key_id,
        owner.map(EcoId::as_str),
    )
    .fetch_optional(connection)
    .await?;
    row.map(ApiKey::try_from).transpose()
}

/// An account's keys, newest first, after a place in that order.
#[tracing::instrument(name = "db.eco_api_keys.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    connection: &mut PgConnection,
    eco_id: &EcoId,
    after: Option<&(DateTime<Utc>, String)>,
    limit: i64,
) -> sqlx::Result<Vec<ApiKey>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select key_id, eco_id, name, scopes, test_mode, status = 'active' as "active!", created_time,
                  last_used_time
           from eco_api_keys
           where eco_id = $1 and ($2::timestamptz is null or (created_time, key_id) < ($2, $3))
           order by created_time desc, key_id desc
           limit $4"#,
        eco_id.as_str(),
        after.map(|a| a.0),
        after.map(|a| a.1.as_str()),
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(ApiKey::try_from).collect()
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

/// How many keys of the account were made within 24 hours.
#[tracing::instrument(name = "db.eco_api_keys.select", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn count_of_a_day(connection: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from eco_api_keys
           where eco_id = $1 and created_time > now() - interval '24 hours'"#,
        eco_id.as_str(),
    )
    .fetch_one(connection)
    .await
}

/// Notes that keys were used, unless that was noted just now. A key that is locked is being changed, or noted by another
/// replica: it is left out.
#[tracing::instrument(name = "db.eco_api_keys.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn note_uses(connection: &mut PgConnection, ids: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_api_keys k set last_used_time = now()
         from (select key_id from eco_api_keys
               where key_id = any($1) and (last_used_time is null or last_used_time < now() - interval '1 minute')
               for no key update skip locked) u
         where k.key_id = u.key_id",
        ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes a key, once; `owner`: only if it is this account's. The key, however often.
#[tracing::instrument(name = "db.eco_api_keys.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn revoke(
    connection: &mut PgConnection,
    key_id: &str,
    owner: Option<&EcoId>,
) -> sqlx::Result<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        r#"update eco_api_keys set status = 'revoked', revoked_time = coalesce(revoked_time, now())
           where key_id = $1 and ($2::text is null or eco_id = $2)
           returning key_id, eco_id, name, scopes, test_mode, status = 'active' as "active!", created_time,
                     last_used_time"#,
        key_id,
        owner.map(EcoId::as_str),
    )
    .fetch_optional(connection)
    .await?;
    row.map(ApiKey::try_from).transpose()
}

/// Gives a locked key the secret of its newest rotation.
#[tracing::instrument(name = "db.eco_api_keys.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn replace_secret(
    connection: &mut PgConnection,
    key_id: &str,
    secret_sha256: &[u8],
) -> sqlx::Result<()> {
    sqlx::query!("update eco_api_keys set secret_sha256 = $2 where key_id = $1", key_id, secret_sha256,)
        .execute(connection)
        .await?;
    Ok(())
}
