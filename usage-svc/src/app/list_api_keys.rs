//! An account's API keys, newest first, the revoked ones among them.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use nexus_kit::{db, page};
use sqlx::PgPool;

use crate::{domain::api_key::ApiKey, error::Error, store};

/// Place in the order: made, then id.
pub type Cursor = (DateTime<Utc>, String);

/// A page of keys, and the place after it where there is more.
pub async fn run(
    pool: &PgPool,
    eco_id: &EcoId,
    after: Option<&Cursor>,
    size: i64,
) -> Result<(Vec<ApiKey>, Option<Cursor>), Error> {
    let mut connection = db::acquire(pool).await?;
    if store::accounts::is_closed(&mut connection, eco_id).await?.is_none() {
        return Err(Error::UnknownAccount);
    }
    let mut page = store::api_keys::list(&mut connection, eco_id, after, size + 1).await?;
    let next = page::cut(&mut page, size, |last| (last.created, last.key_id.clone()));
    Ok((page, next))
}
