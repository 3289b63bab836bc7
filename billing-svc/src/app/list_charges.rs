//! The ledger of an account, newest charge first.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use nexus_kit::{db, page};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    domain::charge::Charge,
    error::Error,
    store::{accounts, charge_entries},
};

/// Place in the order: written down, then id, then attempt.
pub type Cursor = (DateTime<Utc>, Uuid, i32);

/// A page of charges, and the place after it where there is more.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    after: Option<&Cursor>,
    size: i64,
) -> Result<(Vec<Charge>, Option<Cursor>), Error> {
    let mut connection = db::acquire(pool).await?;
    if accounts::get(&mut connection, eco_id.as_str()).await?.is_none() {
        return Err(Error::AccountNotFound(eco_id.clone()));
    }
    let mut page = charge_entries::list(&mut connection, eco_id, after, size + 1).await?;
    let next = page::cut(&mut page, size, |last| (last.created_time, last.charge_id, last.attempt));
    Ok((page, next))
}
