//! Sends an endpoint an event of no account's life, so that its owner sees whether it works.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use super::{enabled_endpoint, redeliver::delivery};
use crate::{
    domain::webhook::{MAX_TESTS_A_DAY, delivery::Delivery, event::Message},
    error::Error,
    store::{webhook_deliveries, webhook_endpoints, webhook_messages},
};

/// A repeat of a request returns its delivery, as far as it is by then.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    endpoint_id: Uuid,
    message_id: Uuid,
    request_id: Option<Uuid>,
) -> Result<Delivery, Error> {
    let mut transaction = db::begin(pool).await?;
    // Locks the account: a repeat at the same moment waits here.
    webhook_endpoints::count(&mut transaction, eco_id).await?;
    let endpoint = enabled_endpoint(&mut transaction, eco_id, endpoint_id).await?;
    if let Some(request_id) = request_id
        && let Some(earlier) =
            webhook_deliveries::find_by_request(&mut transaction, endpoint_id, request_id).await?
    {
        return delivery(&mut transaction, endpoint_id, earlier).await;
    }
    if webhook_messages::count_tests(&mut transaction, eco_id).await? >= MAX_TESTS_A_DAY {
        return Err(Error::TooManyTests(eco_id.clone()));
    }
    let now = webhook_messages::now(&mut transaction).await?;
    let message = Message::test(message_id, &endpoint, now);
    webhook_messages::insert(&mut transaction, &[message]).await?;
    webhook_deliveries::insert(&mut transaction, endpoint_id, message_id, request_id).await?;
    let delivery = delivery(&mut transaction, endpoint_id, message_id).await?;
    transaction.commit().await?;
    Ok(delivery)
}
