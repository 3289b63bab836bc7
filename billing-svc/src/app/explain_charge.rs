//! What a charge follows from, as it was kept with it.

use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    domain::{basis::Basis, charge::Charge},
    error::Error,
    store::charge_entries,
};

/// A charge, and what its amount follows from, for whom it is `for_caller`: nobody else hears that it is there. Of several
/// attempts: the one that is in force, else the last.
pub async fn run(
    pool: &PgPool,
    charge_id: Uuid,
    for_caller: impl Fn(&str) -> bool,
) -> Result<(Charge, Basis), Error> {
    let mut connection = db::acquire(pool).await?;
    let found = charge_entries::find(&mut connection, charge_id)
        .await?
        .filter(|(charge, _)| for_caller(&charge.eco_id));
    let (charge, basis) = found.ok_or(Error::ChargeNotFound(charge_id))?;
    Ok((charge, basis.ok_or(Error::BasisNotKept(charge_id))?))
}
