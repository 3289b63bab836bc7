//! What a charge follows from, as it was kept with it.

use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    domain::{basis::Kept, charge::Charge},
    error::Error,
    store::charge_entries,
};

/// A charge, and what its amount follows from, for whom it is `for_caller`: nobody else hears that it is there. Of several
/// attempts: the one that is in force, else the last.
pub async fn run(
    pool: &PgPool,
    charge_id: Uuid,
    for_caller: impl Fn(&str) -> bool,
) -> Result<(Charge, Kept), Error> {
    let mut connection = db::acquire(pool).await?;
    let found = charge_entries::find(&mut connection, charge_id).await?;
    let charge = found.filter(|charge| for_caller(&charge.eco_id)).ok_or(Error::ChargeNotFound(charge_id))?;
    let kept = charge_entries::kept(&mut connection, charge_id, charge.attempt).await?;
    Ok((charge, kept))
}
