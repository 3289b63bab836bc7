//! Sends a message to an endpoint again.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::enabled_endpoint;
use crate::{
    domain::webhook::delivery::Delivery,
    error::Error,
    store::webhook_deliveries::{self, Which},
};

/// A repeat of the last request sends nothing more. The delivery as it is afterwards.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    endpoint_id: Uuid,
    message_id: Uuid,
    request_id: Option<Uuid>,
) -> Result<Delivery, Error> {
    let mut transaction = db::begin(pool).await?;
    enabled_endpoint(&mut transaction, eco_id, endpoint_id).await?;
    webhook_deliveries::redeliver(&mut transaction, endpoint_id, message_id, request_id).await?;
    let delivery = delivery(&mut transaction, endpoint_id, message_id).await?;
    transaction.commit().await?;
    Ok(delivery)
}

/// One delivery.
pub(super) async fn delivery(
    db: &mut PgConnection,
    endpoint_id: Uuid,
    message_id: Uuid,
) -> Result<Delivery, Error> {
    let which = Which { message_id: Some(message_id), ..Which::default() };
    webhook_deliveries::list(db, endpoint_id, &which, 1).await?.pop().ok_or(Error::DeliveryNotFound)
}
