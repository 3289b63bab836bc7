use sqlx::PgPool;

use super::snapshot;
use crate::{
    domain::overview::{Overview, TOP_USERS},
    error::Error,
    store,
};

/// The whole business at a glance, at most a second behind the counters.
pub async fn get_overview(pool: &PgPool) -> Result<Overview, Error> {
    let mut tx = snapshot(pool).await?;
    let totals = store::eco_current_usage::totals(&mut tx).await?;
    let top_users = store::eco_current_usage::top(&mut tx, TOP_USERS).await?;
    let as_of = store::eco_current_usage::time(&mut tx).await?;
    tx.commit().await?;
    Ok(Overview::new(&totals, top_users, as_of))
}
