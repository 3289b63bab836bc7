//! Changes an endpoint, or enables it again.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use super::endpoint;
use crate::{
    domain::webhook::{Endpoint, EndpointChange},
    error::Error,
    store::{webhook_deliveries, webhook_endpoints},
};

/// The endpoint after the change. What waits for one that is disabled is held, and due once it is enabled.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    endpoint_id: Uuid,
    change: &EndpointChange,
    actor: &str,
) -> Result<Endpoint, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    if !webhook_endpoints::update(&mut transaction, eco_id, endpoint_id, change).await? {
        return Err(Error::EndpointNotFound(endpoint_id));
    }
    match change.enabled {
        Some(true) => webhook_deliveries::release(&mut transaction, endpoint_id).await?,
        Some(false) => webhook_deliveries::hold(&mut transaction, endpoint_id).await?,
        None => {}
    }
    let changed = endpoint(&mut transaction, eco_id, endpoint_id).await?;
    transaction.commit().await?;
    Ok(changed)
}
