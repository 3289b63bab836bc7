//! Partitions are made ahead and dropped by retention, and settled leases and gone holders deleted: at the start and every
//! hour. A partition that is missing all the same is made by the flush that needs it.

use std::time::Duration;

use nexus_kit::db;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store;

const EVERY: Duration = Duration::from_secs(3600);
const AFTER_FAILURE: Duration = Duration::from_secs(10);

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

/// One round.
pub async fn once(pool: &PgPool, retention_days: u16) -> sqlx::Result<()> {
    let mut connection = db::acquire(pool).await?;
    let made = store::api_usage::ensure_partitions(&mut connection).await?;
    let leases = store::quota_leases::delete_settled(&mut connection).await?;
    let holders = store::quota_holders::delete_gone(&mut connection).await?;
    // Last: it does not wait for whoever reads the raw log, and may fail for hours.
    let dropped = store::api_usage::drop_partitions(&mut connection, i32::from(retention_days)).await?;
    tracing::info!(made, dropped, leases, holders, "maintenance");
    Ok(())
}
