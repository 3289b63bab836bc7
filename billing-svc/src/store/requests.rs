//! `eco_billing_requests`: answers to requests, for repeats.

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::unknown_word;

/// What a request has asked for, and its answer.
#[tracing::instrument(name = "db.eco_billing_requests.find", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find<Q: DeserializeOwned, A: DeserializeOwned>(
    db: &mut PgConnection,
    method: &str,
    request_id: Uuid,
) -> sqlx::Result<Option<(Q, A)>> {
    let row = sqlx::query!(
        "select request, answer from eco_billing_requests where method = $1 and request_id = $2",
        method,
        request_id,
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let request = serde_json::from_value(row.request).map_err(unknown_word)?;
        Ok((request, serde_json::from_value(row.answer).map_err(unknown_word)?))
    })
    .transpose()
}

/// Keeps an answer.
#[tracing::instrument(name = "db.eco_billing_requests.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    method: &str,
    request_id: Uuid,
    request: &(impl Serialize + Sync),
    answer: &(impl Serialize + Sync),
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_billing_requests (method, request_id, request, answer) values ($1, $2, $3, $4)",
        method,
        request_id,
        Json(request) as _,
        Json(answer) as _,
    )
    .execute(db)
    .await?;
    Ok(())
}
