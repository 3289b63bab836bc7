use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use super::require_account;
use crate::{
    domain::forecast::{self, Forecast, HISTORY_DAYS, History, Standing},
    error::Error,
    store,
};

/// Where an account stands in its current period, live from the counters, and how that is expected to end by its daily
/// rollup.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<(Standing, Forecast), Error> {
    let mut tx = db::snapshot(pool).await?;
    require_account(&mut tx, eco_id).await?;
    let standing = store::standing::read(&mut tx, eco_id).await?;
    let standing = standing.ok_or_else(|| Error::AccountClosed(eco_id.clone()))?;
    let days = store::usage_daily::units(&mut tx, eco_id, HISTORY_DAYS).await?;
    tx.commit().await?;
    let forecast = forecast::forecast(&standing, &History::new(standing.now.date_naive(), &days))?;
    Ok((standing, forecast))
}
