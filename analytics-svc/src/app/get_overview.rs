use nexus_kit::db;
use sqlx::PgPool;

use crate::{
    domain::overview::{Overview, TOP_USERS},
    error::Error,
    store,
};

/// The whole business at a glance, at most a second behind the counters.
pub async fn run(pool: &PgPool) -> Result<Overview, Error> {
    let mut tx = db::snapshot(pool).await?;
    let totals = store::accounts_now::totals(&mut tx).await?;
    let top_users = store::accounts_now::top(&mut tx, None, TOP_USERS).await?;
    let as_of = store::accounts_now::time(&mut tx).await?;
    tx.commit().await?;
    Ok(Overview::new(&totals, top_users, as_of))
}
