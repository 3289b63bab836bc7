//! Changes an endpoint, or enables it again.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use super::endpoint;
use crate::{
    domain::webhook::{Endpoint, EndpointChange},
    error::Error,
    store::webhook_endpoints,
};

/// The endpoint after the change.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    endpoint_id: Uuid,
    change: &EndpointChange,
) -> Result<Endpoint, Error> {
    let mut transaction = db::begin(pool).await?;
    if !webhook_endpoints::update(&mut transaction, eco_id, endpoint_id, change).await? {
        return Err(Error::EndpointNotFound(endpoint_id));
    }
    let changed = endpoint(&mut transaction, eco_id, endpoint_id).await?;
    transaction.commit().await?;
    Ok(changed)
}
