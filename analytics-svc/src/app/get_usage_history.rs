use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use super::require_account;
use crate::{
    domain::history::{DailyUsage, TOP_ENDPOINTS},
    error::Error,
    store,
};

/// Usage a day over the last `days` UTC days, today included and live: the flush that commits an event
/// updates the rollup in the same transaction.
pub async fn run(pool: &PgPool, eco_id: &EcoId, days: i64) -> Result<Vec<DailyUsage>, Error> {
    let mut tx = db::snapshot(pool).await?;
    require_account(&mut tx, eco_id).await?;
    let history = store::usage_daily::days(&mut tx, eco_id, days, TOP_ENDPOINTS).await?;
    tx.commit().await?;
    Ok(history)
}
