//! Ends an API key for good.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::api_key::ApiKey, error::Error, store};

/// Revokes a key; one that is revoked stays as it is. `owner`: the only account whose keys count, where
/// there is one.
pub async fn run(pool: &PgPool, key_id: &str, owner: Option<&EcoId>) -> Result<ApiKey, Error> {
    let mut connection = db::acquire(pool).await?;
    store::api_keys::revoke(&mut connection, key_id, owner).await?.ok_or(Error::UnknownApiKey)
}
