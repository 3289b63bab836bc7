//! Reads an account.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::account::Account, error::Error, store::accounts};

/// The account, with the subscription it has or had last.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<Account, Error> {
    let mut connection = db::acquire(pool).await?;
    accounts::get(&mut connection, eco_id.as_str())
        .await?
        .ok_or_else(|| Error::AccountNotFound(eco_id.clone()))
}
