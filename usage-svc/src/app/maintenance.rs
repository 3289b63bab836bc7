//! Partitions are made ahead and dropped by retention, and settled leases and gone holders deleted: at the start and every
//! hour. A partition that is missing all the same is made by the flush that needs it.

use std::time::Duration;

use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::store;

const EVERY: Duration = Duration::from_secs(3600);
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Leases that are deleted at once: however many there are, each statement ends in time, and what it did stays.
const LEASES_AT_ONCE: u16 = 10_000;

/// Runs until `stop`. A failure is logged and tried again soon: nothing waits for this.
pub async fn run(pool: PgPool, retention_days: u16, stop: CancellationToken) {
    loop {
        let pause = match once(&pool, retention_days).await {
            Ok(()) => EVERY,
            Err(error) => {
                tracing::warn!(%error, "maintenance failed and is tried again");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One round. What fails keeps nothing else from being done.
pub async fn once(pool: &PgPool, retention_days: u16) -> sqlx::Result<()> {
    let mut connection = db::acquire(pool).await?;
    let made = store::api_usage::ensure_partitions(&mut connection).await;
    // It does not wait for whoever reads the raw log, and may fail for hours.
    let dropped = store::api_usage::drop_partitions(&mut connection, i32::from(retention_days)).await;
    let holders = store::quota_holders::delete_gone(&mut connection).await;
    let leases = delete_leases(&mut connection).await;
    let (made, dropped, holders, leases) = (made?, dropped?, holders?, leases?);
    tracing::info!(made, dropped, leases, holders, "maintenance");
    Ok(())
}

async fn delete_leases(connection: &mut PgConnection) -> sqlx::Result<u64> {
    let mut all = 0;
    loop {
        let deleted = store::quota_leases::delete_settled(connection, i64::from(LEASES_AT_ONCE)).await?;
        all += deleted;
        if deleted < u64::from(LEASES_AT_ONCE) {
            return Ok(all);
        }
    }
}
