//! Verifies an API key, in the database: a revocation holds at once, at every replica.

use nexus_core::id::ApiKeyText;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::api_key::ApiKey, error::Error, store};

/// What an unknown key is compared with, so that it takes as long: the hash of no text.
const NO_SECRET: [u8; 32] = [0; 32];

/// The key that the text opens.
pub async fn run(pool: &PgPool, text: &ApiKeyText) -> Result<ApiKey, Error> {
    let mut connection = db::acquire(pool).await?;
    let stored = store::api_keys::for_verification(&mut connection, text.key_id()).await?;
    let opens = stored.as_ref().map_or_else(|| text.matches(&NO_SECRET), |stored| stored.opens_to(text));
    let stored = stored.filter(|_| opens).ok_or(Error::InvalidApiKey)?;
    if stored.use_is_stale {
        // Noted once a minute: a busy key costs no write per call.
        store::api_keys::note_use(&mut connection, &stored.key.key_id).await?;
    }
    Ok(stored.key)
}
