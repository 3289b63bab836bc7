//! Deletes an endpoint with everything that belongs to it.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{error::Error, store::webhook_endpoints};

/// One that does not exist is deleted.
pub async fn run(pool: &PgPool, eco_id: &EcoId, endpoint_id: Uuid, actor: &str) -> Result<(), Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    webhook_endpoints::delete(&mut transaction, eco_id, endpoint_id).await?;
    Ok(transaction.commit().await?)
}
