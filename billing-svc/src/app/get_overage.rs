//! An account's overage in its current period, exact: from the counters, not from the summary.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::overage::Facts, error::Error, store::facts};

/// The facts of the current period, by database time.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<Facts, Error> {
    let mut connection = db::acquire(pool).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let period = facts::current_period(&mut connection, eco_id.as_str()).await?.ok_or_else(unknown)?;
    facts::read(&mut connection, &[period]).await?.pop().ok_or_else(unknown)
}
