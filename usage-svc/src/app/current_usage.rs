//! An account's current period, live from the counters. Closed accounts are shown, too.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use tokio::time::timeout;

use super::quota::{self, Quota};
use crate::{domain::quota::Standing, error::Error, store};

/// Where the account stands, and the units lost with their holders.
pub async fn run(pool: &PgPool, quota: &Quota, eco_id: &EcoId) -> Result<Standing, Error> {
    let read = async {
        let mut connection = db::acquire(pool).await?;
        // The account's claims wait meanwhile.
        let read = timeout(quota::BOUND, standing(&mut connection, eco_id)).await;
        db::in_time(read, connection)?.ok_or(Error::UnknownAccount)
    };
    quota.standing(eco_id, read).await
}

async fn standing(connection: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<Option<Standing>> {
    let Some(mut standing) = store::accounts::standing(connection, eco_id).await? else { return Ok(None) };
    standing.forfeited = store::quota_leases::forfeited(connection, eco_id, standing.period).await?;
    Ok(Some(standing))
}

/// The same of an account that is not closed.
pub async fn of_open(pool: &PgPool, quota: &Quota, eco_id: &EcoId) -> Result<Standing, Error> {
    let standing = run(pool, quota, eco_id).await?;
    if standing.closed { Err(Error::ClosedAccount) } else { Ok(standing) }
}
