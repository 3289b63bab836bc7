use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{
    domain::{overview::TopUser, users::UserCursor},
    error::Error,
    store,
};

/// A page of the accounts with the most usage in their current period, and where the next page begins.
pub async fn run(
    pool: &PgPool,
    after: Option<&UserCursor>,
    size: i64,
) -> Result<(Vec<TopUser>, Option<UserCursor>), Error> {
    let mut tx = db::snapshot(pool).await?;
    let mut users = store::accounts_now::top(&mut tx, after, size + 1).await?;
    tx.commit().await?;
    let next = page::cut(&mut users, size, TopUser::cursor);
    Ok((users, next))
}
