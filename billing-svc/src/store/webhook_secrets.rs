//! `eco_webhook_secrets`: what webhooks are signed with. Kept as they are, for they must sign; no other role may
//! read them.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::webhook::signature::Secret;

/// Adds a secret, and lets those before it end after `grace`; those that end sooner do.
#[tracing::instrument(name = "db.eco_webhook_secrets.rotate", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn rotate(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    secret: &Secret,
    grace: TimeDelta,
    request_id: Option<Uuid>,
) -> sqlx::Result<DateTime<Utc>> {
    let end = sqlx::query_scalar!(
        r#"with ended as (
               update eco_webhook_secrets set expire_time = least(expire_time, now() + $2::interval)
               where endpoint_id = $1)
           select now() + $2::interval as "end!""#,
        endpoint_id,
        grace as _,
    )
    .fetch_one(&mut *db)
    .await?;
    sqlx::query!(
        "insert into eco_webhook_secrets (endpoint_id, eco_id, secret, request_id, grace_period_ms)
         select e.endpoint_id, e.eco_id, $2::bytea, $3::uuid, $4::bigint from eco_webhook_endpoints e where e.endpoint_id = $1",
        endpoint_id,
        secret.as_bytes(),
        request_id,
        grace.num_milliseconds(),
    )
    .execute(db)
    .await?;
    Ok(end)
}

/// Those that sign now, the newest first.
#[tracing::instrument(name = "db.eco_webhook_secrets.signing", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn signing(db: &mut PgConnection, endpoint_id: Uuid) -> sqlx::Result<Vec<Secret>> {
    let secrets = sqlx::query_scalar!(
        "select secret from eco_webhook_secrets
         where endpoint_id = $1 and (expire_time is null or expire_time > now())
         order by created_time desc",
        endpoint_id,
    )
    .fetch_all(db)
    .await?;
    Ok(secrets.into_iter().map(Secret::from_bytes).collect())
}

/// What a request has made, and when the secret before it ends.
#[derive(Debug)]
pub struct Made {
    /// The secret; `None`: it does not sign any more, or is older than what a repeat may be.
    pub secret: Option<Secret>,
    /// The grace that was asked for.
    pub grace: TimeDelta,
    /// End of the one before.
    pub before_end_time: Option<DateTime<Utc>>,
}

/// The secret that a creation or a rotation with this request id has made. A day later nobody is shown it any more.
#[tracing::instrument(name = "db.eco_webhook_secrets.made_by", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn made_by(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    request_id: Uuid,
) -> sqlx::Result<Option<Made>> {
    let row = sqlx::query!(
        r#"select s.secret, s.grace_period_ms,
                  ((s.expire_time is null or s.expire_time > now()) and s.created_time > now() - interval '1 day')
                      as "shown!",
                  (select p.expire_time from eco_webhook_secrets p
                   where p.endpoint_id = s.endpoint_id and p.created_time < s.created_time
                   order by p.created_time desc limit 1) as before_end_time
           from eco_webhook_secrets s
           where s.endpoint_id = $1 and s.request_id = $2"#,
        endpoint_id,
        request_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Made {
        secret: row.shown.then(|| Secret::from_bytes(row.secret)),
        grace: TimeDelta::milliseconds(row.grace_period_ms),
        before_end_time: row.before_end_time,
    }))
}

/// Forgets those that have not signed for `keep`, and with them which request made them.
#[tracing::instrument(name = "db.eco_webhook_secrets.delete_ended", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete_ended(db: &mut PgConnection, keep: TimeDelta) -> sqlx::Result<u64> {
    let done =
        sqlx::query!("delete from eco_webhook_secrets where expire_time < now() - $1::interval", keep as _,)
            .execute(db)
            .await?;
    Ok(done.rows_affected())
}
