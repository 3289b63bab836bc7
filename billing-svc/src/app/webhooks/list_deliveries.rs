//! What was, or is to be, sent to an endpoint.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use nexus_kit::{db, page};
use sqlx::PgPool;
use uuid::Uuid;

use super::endpoint;
use crate::{
    domain::webhook::delivery::{Delivery, DeliveryStatus},
    error::Error,
    store::webhook_deliveries::{self, Which},
};

/// A place in the list.
pub type Cursor = (DateTime<Utc>, Uuid);

/// A page, and where the next begins.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    endpoint_id: Uuid,
    status: Option<DeliveryStatus>,
    after: Option<Cursor>,
    size: i64,
) -> Result<(Vec<Delivery>, Option<Cursor>), Error> {
    let mut connection = db::acquire(pool).await?;
    endpoint(&mut connection, eco_id, endpoint_id).await?;
    let which = Which { message_id: None, status, after };
    let mut deliveries = webhook_deliveries::list(&mut connection, endpoint_id, &which, size + 1).await?;
    let next = page::cut(&mut deliveries, size, |delivery| (delivery.created_time, delivery.message_id));
    Ok((deliveries, next))
}
