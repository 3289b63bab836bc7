//! An account's endpoints.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use nexus_kit::{db, page};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{domain::webhook::Endpoint, error::Error, store::webhook_endpoints};

/// A place in the list.
pub type Cursor = (DateTime<Utc>, Uuid);

/// A page, and where the next begins.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    after: Option<&Cursor>,
    size: i64,
) -> Result<(Vec<Endpoint>, Option<Cursor>), Error> {
    let mut connection = db::acquire(pool).await?;
    let mut endpoints = webhook_endpoints::list(&mut connection, eco_id, after, size + 1).await?;
    let next = page::cut(&mut endpoints, size, |endpoint| (endpoint.created_time, endpoint.endpoint_id));
    Ok((endpoints, next))
}
