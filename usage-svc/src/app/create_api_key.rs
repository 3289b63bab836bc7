//! Makes and verifies API keys. The secret is stored as its SHA-256 only.

use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::validate::Violations;
use sqlx::PgPool;

use crate::{
    error::Error,
    store::{
        self,
        api_keys::{ApiKeyRow, NewApiKey},
    },
};

/// A key to make.
#[derive(Debug)]
pub struct NewKey {
    /// Account it is for.
    pub eco_id: EcoId,
    /// Name for people.
    pub name: String,
    /// What it may do; empty: everything a key may.
    pub scopes: Vec<String>,
    /// Metered apart.
    pub test_mode: bool,
    /// The key itself: random, or derived from a request id so that a repeat has the same one.
    pub text: ApiKeyText,
}

/// Stores a key. A key that is there already is the answer to a repeated request, if it is the same.
pub async fn create(pool: &PgPool, new: &NewKey) -> Result<ApiKeyRow, Error> {
    let mut transaction = pool.begin().await?;
    match store::accounts::is_closed(&mut transaction, &new.eco_id).await? {
        None => return Err(Error::UnknownAccount),
        Some(true) => return Err(Error::ClosedAccount),
        Some(false) => {}
    }
    let row = NewApiKey {
        key_id: new.text.key_id(),
        eco_id: new.eco_id.as_str(),
        secret_sha256: &new.text.secret_sha256(),
        name: &new.name,
        scopes: &new.scopes,
        test_mode: new.test_mode,
    };
    let made = store::api_keys::insert(&mut transaction, row).await?;
    let stored =
        store::api_keys::by_id(&mut transaction, row.key_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    transaction.commit().await?;
    let same = stored.eco_id == row.eco_id
        && stored.name == new.name
        && stored.scopes == new.scopes
        && stored.test_mode == new.test_mode;
    if !made && !same {
        return Err(Error::Invalid(Violations::one("request_id", "was used to create another key")));
    }
    Ok(stored)
}

/// The stored key, if the text is right and the key is active.
pub async fn verify(pool: &PgPool, text: &ApiKeyText) -> Result<ApiKeyRow, Error> {
    let mut connection = pool.acquire().await?;
    let stored = store::api_keys::by_id(&mut connection, text.key_id()).await?;
    // An unknown key is compared as well, with a hash that no text has, so that it takes as long.
    let right = text.matches(stored.as_ref().map_or(&[0; 32], |key| key.secret_sha256.as_slice()));
    let key = stored.filter(|key| right && key.active).ok_or(Error::InvalidApiKey)?;
    if key.use_is_stale {
        // Noted once a minute: a busy key costs no write per call.
        store::api_keys::note_use(&mut connection, &key.key_id).await?;
    }
    Ok(key)
}
