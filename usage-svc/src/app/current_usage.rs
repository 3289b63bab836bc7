//! An account's current period, live from the counters. Closed accounts are shown, too.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use super::quota::Quota;
use crate::{domain::quota::Standing, error::Error, store};

/// Where the account stands, and the units lost with their holders.
pub async fn run(pool: &PgPool, quota: &Quota, eco_id: &EcoId) -> Result<Standing, Error> {
    let read = async {
        let mut connection = db::acquire(pool).await?;
        let standing = store::accounts::standing(&mut connection, eco_id).await?;
        let mut standing = standing.ok_or(Error::UnknownAccount)?;
        standing.forfeited = store::quota_leases::forfeited(&mut connection, eco_id, standing.period).await?;
        Ok(standing)
    };
    quota.standing(eco_id, read).await
}

/// The same of an account that is not closed.
pub async fn of_open(pool: &PgPool, quota: &Quota, eco_id: &EcoId) -> Result<Standing, Error> {
    let standing = run(pool, quota, eco_id).await?;
    if standing.closed { Err(Error::ClosedAccount) } else { Ok(standing) }
}
