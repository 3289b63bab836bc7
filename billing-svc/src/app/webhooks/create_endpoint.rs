//! Adds an endpoint to an account, with its first secret.

use chrono::TimeDelta;
use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;

use super::endpoint;
use crate::{
    domain::webhook::{Endpoint, MAX_ENDPOINTS, NewEndpoint, signature::Secret},
    error::Error,
    store::{webhook_endpoints, webhook_secrets},
};

/// A repeat of a request returns the endpoint it created, and for a day the secret, as long as that signs.
pub async fn run(
    pool: &PgPool,
    new: &NewEndpoint,
    secret: Secret,
    actor: &str,
) -> Result<(Endpoint, Option<Secret>), Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    // Locks the account: a repeat at the same moment waits here.
    let found = webhook_endpoints::count(&mut transaction, &new.eco_id).await?;
    let (count, closed) = found.ok_or_else(|| Error::AccountNotFound(new.eco_id.clone()))?;
    if let Some(request_id) = new.request_id
        && let Some(created) =
            webhook_endpoints::find_by_request(&mut transaction, &new.eco_id, request_id).await?
    {
        if created.created_as != new.asked() {
            return Err(Violations::one("request_id", "was used to create another endpoint").into());
        }
        let id = created.endpoint.endpoint_id;
        let made = webhook_secrets::made_by(&mut transaction, id, request_id).await?;
        return Ok((created.endpoint, made.and_then(|made| made.secret)));
    }
    if closed {
        return Err(Error::AccountClosed(new.eco_id.clone()));
    }
    if count >= MAX_ENDPOINTS {
        return Err(Error::TooManyEndpoints(new.eco_id.clone()));
    }
    webhook_endpoints::insert(&mut transaction, new).await?;
    let (id, none) = (new.endpoint_id, TimeDelta::zero());
    webhook_secrets::rotate(&mut transaction, id, &secret, none, new.request_id).await?;
    let created = endpoint(&mut transaction, &new.eco_id, id).await?;
    transaction.commit().await?;
    Ok((created, Some(secret)))
}
