use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{
    domain::users::{PageStart, User, UserCursor, UserFilter},
    error::Error,
    store,
};

/// A page of accounts.
#[derive(Debug)]
pub struct UserPage {
    /// The accounts.
    pub users: Vec<User>,
    /// Where the next page begins, if there is one.
    pub next: Option<UserCursor>,
    /// Accounts that match the filter, on all pages.
    pub total: i64,
}

/// Accounts with usage and revenue of their current period, at most a second behind the counters.
pub async fn run(
    pool: &PgPool,
    filter: &UserFilter,
    start: &PageStart,
    size: i64,
) -> Result<UserPage, Error> {
    let mut tx = db::snapshot(pool).await?;
    let total = store::accounts_now::count(&mut tx, filter).await?;
    let mut users = store::accounts_now::page(&mut tx, filter, start, size + 1, total).await?;
    tx.commit().await?;
    let next = page::cut(&mut users, size, |user| user.cursor.clone());
    Ok(UserPage { users, next, total })
}
