//! An account's overage in its current period, exact: from the counters, not from the summary.

use nexus_core::id::EcoId;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{
    domain::{overage::Facts, spend_cap::SpendCap},
    error::Error,
    store::{accounts, facts},
};

/// The facts of the current period, by database time, and the account's spend cap in it.
pub async fn run(pool: &PgPool, eco_id: &EcoId) -> Result<(Facts, Option<SpendCap>), Error> {
    let mut connection = db::acquire(pool).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let period = facts::current_period(&mut connection, eco_id.as_str()).await?.ok_or_else(unknown)?;
    let facts = facts::read(&mut connection, &[period]).await?.pop().ok_or_else(unknown)?;
    let cap = accounts::spend_cap(&mut connection, eco_id.as_str(), facts.plan, facts.plan_version).await?;
    let cap = cap.map(|(cap, hard)| SpendCap::of(cap, hard, &facts)).transpose()?;
    Ok((facts, cap))
}
