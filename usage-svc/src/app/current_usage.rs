//! An account's current period, live from the counters. Closed accounts are shown, too.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::quota::Standing, error::Error, store};

/// Where the account stands.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<Standing, Error> {
    let mut connection = db::acquire(pool).await?;
    store::accounts::standing(&mut connection, eco_id).await?.ok_or(Error::UnknownAccount)
}
