//! `eco_webhook_endpoints`.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::id::EcoId;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown_word;
use crate::domain::webhook::{DisabledReason, Endpoint, EndpointChange, NewEndpoint, event::EventType};

struct Row {
    endpoint_id: Uuid,
    eco_id: String,
    url: String,
    description: String,
    event_types: Vec<String>,
    disabled_reason: Option<String>,
    disabled_time: Option<DateTime<Utc>>,
    failing_since: Option<DateTime<Utc>>,
    created_time: DateTime<Utc>,
}

impl TryFrom<Row> for Endpoint {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        let event_types: Result<Vec<EventType>, _> =
            row.event_types.iter().map(|text| text.parse()).collect();
        let disabled = match row.disabled_reason.zip(row.disabled_time) {
            Some((reason, time)) => Some((reason.parse().map_err(unknown_word)?, time)),
            None => None,
        };
        Ok(Self {
            endpoint_id: row.endpoint_id,
            eco_id: row.eco_id,
            url: row.url,
            description: row.description,
            event_types: event_types.map_err(unknown_word)?,
            disabled,
            failing_since: row.failing_since,
            created_time: row.created_time,
        })
    }
}

fn words(event_types: &[EventType]) -> Vec<String> {
    event_types.iter().map(|event_type| event_type.as_str().to_owned()).collect()
}

/// Adds an endpoint.
#[tracing::instrument(name = "db.eco_webhook_endpoints.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, new: &NewEndpoint) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_webhook_endpoints (endpoint_id, eco_id, url, description, event_types, request_id, created_as)
         values ($1, $2, $3, $4, $5, $6, $7)",
        new.endpoint_id,
        new.eco_id.as_str(),
        new.url,
        new.description,
        &words(&new.event_types),
        new.request_id,
        new.request_id.map(|_| new.asked()),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// An endpoint of an account.
#[tracing::instrument(name = "db.eco_webhook_endpoints.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, eco_id: &EcoId, endpoint_id: Uuid) -> sqlx::Result<Option<Endpoint>> {
    sqlx::query_as!(
        Row,
        "select endpoint_id, eco_id, url, description, event_types, disabled_reason, disabled_time, failing_since,
                created_time
         from eco_webhook_endpoints
         where endpoint_id = $1 and eco_id = $2",
        endpoint_id,
        eco_id.as_str(),
    )
    .fetch_optional(db)
    .await?
    .map(Endpoint::try_from)
    .transpose()
}

/// The same; it is neither disabled nor deleted before the transaction ends.
#[tracing::instrument(name = "db.eco_webhook_endpoints.get_to_send", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get_to_send(
    db: &mut PgConnection,
    eco_id: &EcoId,
    endpoint_id: Uuid,
) -> sqlx::Result<Option<Endpoint>> {
    sqlx::query_as!(
        Row,
        "select endpoint_id, eco_id, url, description, event_types, disabled_reason, disabled_time, failing_since,
                created_time
         from eco_webhook_endpoints
         where endpoint_id = $1 and eco_id = $2
         for share",
        endpoint_id,
        eco_id.as_str(),
    )
    .fetch_optional(db)
    .await?
    .map(Endpoint::try_from)
    .transpose()
}

/// What a request has created.
#[derive(Debug)]
pub struct Created {
    /// The endpoint as it is now.
    pub endpoint: Endpoint,
    /// What the request asked for.
    pub created_as: Value,
}

/// The endpoint that a request has created.
#[tracing::instrument(name = "db.eco_webhook_endpoints.find_by_request", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find_by_request(
    db: &mut PgConnection,
    eco_id: &EcoId,
    request_id: Uuid,
) -> sqlx::Result<Option<Created>> {
    let found = sqlx::query!(
        r#"select endpoint_id, created_as as "created_as!" from eco_webhook_endpoints
           where eco_id = $1 and request_id = $2"#,
        eco_id.as_str(),
        request_id,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(found) = found else { return Ok(None) };
    let endpoint = get(db, eco_id, found.endpoint_id).await?;
    Ok(endpoint.map(|endpoint| Created { endpoint, created_as: found.created_as }))
}

/// The endpoints of an account, oldest first, after a place in that order.
#[tracing::instrument(name = "db.eco_webhook_endpoints.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    eco_id: &EcoId,
    after: Option<&(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> sqlx::Result<Vec<Endpoint>> {
    sqlx::query_as!(
        Row,
        "select endpoint_id, eco_id, url, description, event_types, disabled_reason, disabled_time, failing_since,
                created_time
         from eco_webhook_endpoints
         where eco_id = $1 and ($2::timestamptz is null or (created_time, endpoint_id) > ($2, $3::uuid))
         order by created_time, endpoint_id
         limit $4",
        eco_id.as_str(),
        after.map(|(time, _)| *time),
        after.map(|(_, endpoint_id)| *endpoint_id),
        limit,
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Endpoint::try_from)
    .collect()
}

/// Of these accounts, those with an endpoint that is enabled and wants the type.
#[tracing::instrument(name = "db.eco_webhook_endpoints.listening", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn listening(
    db: &mut PgConnection,
    eco_ids: &[&str],
    event_type: &str,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select distinct e.eco_id from eco_webhook_endpoints e
         where e.eco_id = any ($1) and e.disabled_reason is null
           and (cardinality(e.event_types) = 0 or $2 = any (e.event_types))",
        eco_ids as &[&str],
        event_type,
    )
    .fetch_all(db)
    .await
}

/// How many an account has. The account is locked until the transaction ends, so that nobody else adds one; `None`:
/// it does not exist, and true: it is closed.
#[tracing::instrument(name = "db.eco_webhook_endpoints.count", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn count(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<(i64, bool)>> {
    let closed = sqlx::query_scalar!(
        r#"select closed_time is not null as "closed!" from eco_identities where eco_id = $1 for no key update"#,
        eco_id.as_str(),
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(closed) = closed else { return Ok(None) };
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from eco_webhook_endpoints where eco_id = $1"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await?;
    Ok(Some((count, closed)))
}

/// Changes an endpoint; one that is enabled begins without failures. False: there is none.
#[tracing::instrument(name = "db.eco_webhook_endpoints.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn update(
    db: &mut PgConnection,
    eco_id: &EcoId,
    endpoint_id: Uuid,
    change: &EndpointChange,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_webhook_endpoints
         set url = coalesce($3, url),
             description = coalesce($4, description),
             event_types = coalesce($5, event_types),
             disabled_reason = case $6::bool when true then null when false then coalesce(disabled_reason, $7)
                                    else disabled_reason end,
             disabled_time = case $6::bool when true then null when false then coalesce(disabled_time, now())
                                  else disabled_time end,
             failing_since = case when $6 and disabled_reason is not null then null else failing_since end
         where endpoint_id = $1 and eco_id = $2",
        endpoint_id,
        eco_id.as_str(),
        change.url,
        change.description,
        change.event_types.as_deref().map(words) as Option<Vec<String>>,
        change.enabled,
        DisabledReason::ByUser.as_str(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes an endpoint with its secrets, its deliveries and their log.
#[tracing::instrument(name = "db.eco_webhook_endpoints.delete", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete(db: &mut PgConnection, eco_id: &EcoId, endpoint_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from eco_webhook_endpoints where endpoint_id = $1 and eco_id = $2",
        endpoint_id,
        eco_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// It has answered well: it does not fail any more.
#[tracing::instrument(name = "db.eco_webhook_endpoints.succeed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn succeed(db: &mut PgConnection, endpoint_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_webhook_endpoints set failing_since = null
         where endpoint_id = $1 and failing_since is not null",
        endpoint_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// It has failed; for how long by now. `None`: there is no such endpoint any more.
#[tracing::instrument(name = "db.eco_webhook_endpoints.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(db: &mut PgConnection, endpoint_id: Uuid) -> sqlx::Result<Option<TimeDelta>> {
    let row = sqlx::query!(
        r#"update eco_webhook_endpoints set failing_since = coalesce(failing_since, now())
           where endpoint_id = $1
           returning failing_since as "failing_since!", now() as "now!""#,
        endpoint_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| row.now - row.failing_since))
}

/// Sends it nothing more until somebody enables it; false: it is disabled already, or deleted.
#[tracing::instrument(name = "db.eco_webhook_endpoints.disable", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn disable(db: &mut PgConnection, endpoint_id: Uuid, reason: DisabledReason) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_webhook_endpoints set disabled_reason = $2, disabled_time = now()
         where endpoint_id = $1 and disabled_reason is null",
        endpoint_id,
        reason.as_str(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
