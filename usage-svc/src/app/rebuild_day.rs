//! Rebuilds the rollup of a day from the raw log, to the very same numbers. Calls that
//! record events of that day wait meanwhile, and are answered UNAVAILABLE where that takes longer than their lock
//! time-out.

use chrono::NaiveDate;
use nexus_kit::db;
use sqlx::PgPool;

use crate::{error::Error, store};

/// Rebuilds a UTC day; returns the rollup rows written. `pool` acts as the service's role. A day that is
/// not wholly in the raw log is [`Error::DayNotRetained`].
pub async fn run(pool: &PgPool, day: NaiveDate) -> Result<i64, Error> {
    let mut transaction = db::begin(pool).await?;
    let rows = store::usage_daily::rebuild(&mut transaction, day).await.map_err(|e| match &e {
        sqlx::Error::Database(d) if d.code().as_deref() == Some("55000") => Error::DayNotRetained(day),
        _ => Error::Database(e),
    })?;
    transaction.commit().await?;
    Ok(rows)
}
