//! Makes an API key. The secret is stored as its SHA-256 only.

use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;

use crate::{
    domain::api_key::ApiKey,
    error::Error,
    store::{self, api_keys::NewApiKey},
};

/// Keys of an account that are made within a day, at most: whoever may make keys fills no table. Keys that are made
/// at the same moment may be some more.
const MAX_A_DAY: i64 = 1_000;

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
pub async fn run(pool: &PgPool, new: &NewKey, actor: &str) -> Result<ApiKey, Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
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
    if made && store::api_keys::count_of_a_day(&mut transaction, &new.eco_id).await? > MAX_A_DAY {
        return Err(Error::TooManyKeys(MAX_A_DAY));
    }
    let stored =
        store::api_keys::by_id(&mut transaction, row.key_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    transaction.commit().await?;
    let same = stored.eco_id == new.eco_id
        && stored.name == new.name
        && stored.scopes == new.scopes
        && stored.test_mode == new.test_mode;
    if !made && !same {
        return Err(Error::Invalid(Violations::one("request_id", "was used to create another key")));
    }
    Ok(stored)
}
