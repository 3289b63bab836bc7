//! The percentages at which accounts are told of their usage.

use nexus_core::plan::Plan;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{error::Error, store::thresholds};

/// Those of each plan, cheapest first.
pub async fn get(pool: &PgPool) -> Result<Vec<(Plan, Vec<i32>)>, Error> {
    let mut rules = thresholds::rules(&mut *db::acquire(pool).await?).await?;
    Ok(Plan::ALL.map(|plan| (plan, rules.percents.remove(&plan).unwrap_or_default())).into())
}

/// Sets those of a plan, ascending.
pub async fn set(pool: &PgPool, plan: Plan, percents: &[i32], actor: &str) -> Result<(), Error> {
    let mut transaction = db::begin(pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    thresholds::set(&mut transaction, plan, percents).await?;
    Ok(transaction.commit().await?)
}
