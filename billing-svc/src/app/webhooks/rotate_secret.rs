//! Gives an endpoint a new secret; the old one signs as well for a while.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::id::EcoId;
use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;
use uuid::Uuid;

use super::endpoint;
use crate::{
    domain::webhook::signature::{MAX_SECRETS, Secret},
    error::Error,
    store::{webhook_endpoints, webhook_secrets},
};

/// A rotation that is asked for.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Account.
    pub eco_id: EcoId,
    /// Endpoint.
    pub endpoint_id: Uuid,
    /// How long the secrets before go on signing, at most.
    pub grace: TimeDelta,
    /// Makes a repeat return the first answer.
    pub request_id: Option<Uuid>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Rotated {
    /// The new secret; `None`: a repeat, and it does not sign any more, or was made more than a day ago.
    pub secret: Option<Secret>,
    /// When the one before ends.
    pub before_end_time: Option<DateTime<Utc>>,
}

/// A repeat of a request returns the first answer, for a day with the secret, as long as that signs.
pub async fn run(pool: &PgPool, rotation: &Rotation, secret: Secret, actor: &str) -> Result<Rotated, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    let id = rotation.endpoint_id;
    // Locks the account: a repeat at the same moment waits here.
    webhook_endpoints::count(&mut transaction, &rotation.eco_id).await?;
    endpoint(&mut transaction, &rotation.eco_id, id).await?;
    if let Some(request_id) = rotation.request_id
        && let Some(made) = webhook_secrets::made_by(&mut transaction, id, request_id).await?
    {
        if made.grace != rotation.grace {
            let message = "was used for a rotation with another grace period";
            return Err(Violations::one("request_id", message).into());
        }
        return Ok(Rotated { secret: made.secret, before_end_time: made.before_end_time });
    }
    let signing = webhook_secrets::signing(&mut transaction, id).await?.len();
    if signing >= MAX_SECRETS && rotation.grace > TimeDelta::zero() {
        return Err(Error::TooManySecrets(id));
    }
    let end =
        webhook_secrets::rotate(&mut transaction, id, &secret, rotation.grace, rotation.request_id).await?;
    transaction.commit().await?;
    Ok(Rotated { secret: Some(secret), before_end_time: Some(end) })
}
