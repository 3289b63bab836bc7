//! A replica that is stopped, or cut off without a word, in the middle of a flush holds the flush's locks. PostgreSQL ends
//! a session that idles within a transaction, but not one that waits for the rest of a COPY, or for its client to take
//! what was found, whatever its time limits.
//! So each replica looks for such sessions, of whichever replica, and ends them: nothing of them was acknowledged.

use std::{collections::HashSet, time::Duration};

use nexus_kit::db;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store::sessions::{self, Session};

const EVERY: Duration = Duration::from_secs(1);

/// Runs until `stop`.
pub async fn run(pool: PgPool, stop: CancellationToken) {
    let mut waited = HashSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match once(&pool, &waited).await {
            Ok(waiting) => waited = waiting,
            Err(error) => tracing::debug!(%error, "sessions that are not heard could not be looked for"),
        }
    }
}

/// Ends those that waited at the last look and still do; returns who waits.
async fn once(pool: &PgPool, waited: &HashSet<Session>) -> sqlx::Result<HashSet<Session>> {
    let mut transaction = db::begin(pool).await?;
    sessions::as_login(&mut transaction).await?;
    let waiting: HashSet<_> = sessions::waiting(&mut transaction).await?.into_iter().collect();
    for session in waiting.intersection(waited) {
        tracing::warn!(pid = session.pid, began = %session.began, "a session is ended whose client has not been heard for long");
        sessions::terminate(&mut transaction, *session).await?;
    }
    transaction.commit().await?;
    Ok(waiting)
}
