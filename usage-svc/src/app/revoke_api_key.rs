//! Ends an API key for good.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::{Connection, PgPool};

use crate::{
    domain::api_key::{ApiKey, Status},
    error::Error,
    store,
};

/// Revokes a key; one that is revoked stays as it is. `owner`: the only account whose keys count, where
/// there is one.
pub async fn run(pool: &PgPool, key_id: &str, owner: Option<&EcoId>, actor: &str) -> Result<ApiKey, Error> {
    let mut connection = db::acquire(pool).await?;
    // Nothing brings a revoked key back, so that a repeat need not wait for whoever has its row.
    let found = store::api_keys::by_id(&mut connection, key_id).await?;
    let own = found.filter(|key| owner.is_none_or(|owner| *owner == key.eco_id));
    let key = own.ok_or(Error::UnknownApiKey)?;
    if key.status == Status::Revoked {
        return Ok(key);
    }
    let mut transaction = connection.begin().await?;
    db::set_actor(&mut transaction, actor).await?;
    let key = store::api_keys::revoke(&mut transaction, key_id, owner).await?.ok_or(Error::UnknownApiKey)?;
    transaction.commit().await?;
    Ok(key)
}
