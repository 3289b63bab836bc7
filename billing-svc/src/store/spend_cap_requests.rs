//! `eco_spend_cap_requests`: what spend caps were set to, for repeats.

use nexus_core::{id::EcoId, money::Micros};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::spend_cap::SpendCapChange;

/// What a request has set a cap to, if it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The cap; `None`: it was removed.
    pub cap: Option<Micros>,
}

/// The answer to a request.
#[tracing::instrument(name = "db.eco_spend_cap_requests.get", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn get(db: &mut PgConnection, eco_id: &EcoId, request_id: Uuid) -> sqlx::Result<Option<Answered>> {
    let cap = sqlx::query_scalar!(
        "select spend_cap_micros from eco_spend_cap_requests where eco_id = $1 and request_id = $2",
        eco_id.as_str(),
        request_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(cap.map(|cap| Answered { cap: cap.map(Micros) }))
}

/// Keeps the answer of a change that has a request id.
#[tracing::instrument(name = "db.eco_spend_cap_requests.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, change: &SpendCapChange) -> sqlx::Result<()> {
    let Some(request_id) = change.request_id else { return Ok(()) };
    sqlx::query!(
        "insert into eco_spend_cap_requests (eco_id, request_id, spend_cap_micros) values ($1, $2, $3)",
        change.eco_id.as_str(),
        request_id,
        change.cap.map(|cap| cap.0),
    )
    .execute(db)
    .await?;
    Ok(())
}
