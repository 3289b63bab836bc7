//! Ends an API key for good.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::api_key::ApiKey, error::Error, store};

/// Revokes a key; one that is revoked stays as it is. `owner`: the only account whose keys count, where
/// there is one.
pub async fn run(pool: &PgPool, key_id: &str, owner: Option<&EcoId>, actor: &str) -> Result<ApiKey, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    let key = store::api_keys::revoke(&mut transaction, key_id, owner).await?.ok_or(Error::UnknownApiKey)?;
    transaction.commit().await?;
    Ok(key)
}
