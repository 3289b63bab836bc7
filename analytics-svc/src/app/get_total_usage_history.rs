use nexus_kit::db;
use sqlx::PgPool;

use crate::{domain::history::DailyUsage, error::Error, store};

/// Usage of all accounts a day over the last `days` UTC days, today included and live.
pub async fn run(pool: &PgPool, days: i64) -> Result<Vec<DailyUsage>, Error> {
    let mut connection = db::acquire(pool).await?;
    Ok(store::usage_totals::days(&mut connection, days).await?)
}
