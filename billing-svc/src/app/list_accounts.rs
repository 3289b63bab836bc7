//! Lists accounts, newest first.

use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;
use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{domain::account::Account, error::Error, store::accounts};

/// Place in the order: created, then id.
pub type Cursor = (DateTime<Utc>, String);

/// A page of accounts, and the place after it where there is more.
pub async fn run(
    pool: &PgPool,
    plan: Option<Plan>,
    after: Option<&Cursor>,
    size: i64,
) -> Result<(Vec<Account>, Option<Cursor>), Error> {
    let mut connection = db::acquire(pool).await?;
    let mut page = accounts::list(&mut connection, plan, after, size + 1).await?;
    let next = page::cut(&mut page, size, |last| (last.created_time, last.eco_id.clone()));
    Ok((page, next))
}
