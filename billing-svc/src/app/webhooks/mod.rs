//! Customers' webhooks: their endpoints, and the delivery of messages to them.
//!
//! | module | what it does |
//! |---|---|
//! | [`create_endpoint`], [`list_endpoints`], [`update_endpoint`], [`delete_endpoint`], [`rotate_secret`] | endpoints |
//! | [`deliver`] | the worker that sends what is due |
//! | [`list_deliveries`], [`redeliver`], [`send_test`] | what was sent, and sending it again |

pub mod create_endpoint;
pub mod delete_endpoint;
pub mod deliver;
pub mod list_deliveries;
pub mod list_endpoints;
pub mod redeliver;
pub mod rotate_secret;
pub mod send_test;
pub mod update_endpoint;

use nexus_core::id::EcoId;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{domain::webhook::Endpoint, error::Error, store::webhook_endpoints};

async fn endpoint(db: &mut PgConnection, eco_id: &EcoId, endpoint_id: Uuid) -> Result<Endpoint, Error> {
    webhook_endpoints::get(db, eco_id, endpoint_id).await?.ok_or(Error::EndpointNotFound(endpoint_id))
}

/// One that is enabled, and stays so until the transaction ends.
async fn enabled_endpoint(
    db: &mut PgConnection,
    eco_id: &EcoId,
    endpoint_id: Uuid,
) -> Result<Endpoint, Error> {
    let found = webhook_endpoints::get_to_send(db, eco_id, endpoint_id).await?;
    let endpoint = found.ok_or(Error::EndpointNotFound(endpoint_id))?;
    if endpoint.disabled.is_some() { Err(Error::EndpointDisabled(endpoint_id)) } else { Ok(endpoint) }
}
