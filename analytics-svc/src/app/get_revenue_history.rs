use nexus_core::money::Currency;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{
    domain::revenue::{self, Revenue},
    error::Error,
    store,
};

/// The last months in one currency, this one included: the MRR as it is at this moment, the overage as it is charged.
pub async fn run(pool: &PgPool, months: u32, currency: Currency) -> Result<Revenue, Error> {
    let mut tx = db::snapshot(pool).await?;
    let now = store::accounts_now::time(&mut tx).await?;
    let months = revenue::months(now, months);
    let first = months.first().copied().unwrap_or(now.date_naive());
    let moved = store::mrr_movements::sums(&mut tx, currency, first).await?;
    let overage = store::overage_charges::sums(&mut tx, currency, first).await?;
    let begins = store::mrr_movements::begins(&mut tx, currency).await?;
    let currencies = store::plan_prices::currencies(&mut tx).await?;
    tx.commit().await?;
    Ok(Revenue { months: revenue::history(&months, &moved, &overage), begins, currency, currencies })
}
