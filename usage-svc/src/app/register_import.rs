//! Fixes, once per file, the time shift with which a log file is imported.

use nexus_kit::db;
use sqlx::PgPool;

use crate::{error::Error, store};

/// The shift in milliseconds that holds for the file, and whether it held before.
pub async fn run(pool: &PgPool, file_digest: &str, proposed_ms: i64) -> Result<(i64, bool), Error> {
    let mut connection = db::acquire(pool).await?;
    if store::imports::insert(&mut connection, file_digest, proposed_ms).await? {
        return Ok((proposed_ms, false));
    }
    Ok((store::imports::shift_ms(&mut connection, file_digest).await?, true))
}
