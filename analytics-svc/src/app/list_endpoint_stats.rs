use nexus_kit::{db, page};
use sqlx::PgPool;

use super::require_account;
use crate::{
    domain::endpoints::{EndpointCursor, EndpointFilter, EndpointStats},
    error::Error,
    store,
};

/// A page of an account's endpoints, busiest first, and where the next page begins.
pub async fn run(
    pool: &PgPool,
    filter: &EndpointFilter,
    after: Option<&EndpointCursor>,
    size: i64,
) -> Result<(Vec<EndpointStats>, Option<EndpointCursor>), Error> {
    let mut tx = db::snapshot(pool).await?;
    require_account(&mut tx, &filter.eco_id).await?;
    let mut endpoints = store::usage_daily::endpoints(&mut tx, filter, after, size + 1).await?;
    let next = page::cut(&mut endpoints, size, EndpointStats::cursor);
    store::usage_daily::add_sketches(&mut tx, filter, &mut endpoints).await?;
    tx.commit().await?;
    Ok((endpoints, next))
}
