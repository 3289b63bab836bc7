//! Slots of the counters. A writer holds a slot for the length of a flush (an advisory lock of the
//! transaction, so that nothing needs to be given back after a crash) and prefers the one it had last:
//! replicas settle on different slots and do not wait for each other's counter rows. A counter's update is
//! atomic whatever the slot, so sharing one costs waiting and nothing else.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// Slots there are.
pub const SLOTS: i16 = 16;

/// Begins a flush: the database's clock, and whether the slot was free and is now held.
#[tracing::instrument(name = "db.writer_slot.hold", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_hold(connection: &mut PgConnection, slot: i16) -> sqlx::Result<(DateTime<Utc>, bool)> {
    let row = sqlx::query!(
        r#"select now() as "now!",
                  pg_try_advisory_xact_lock(hashtext('nexus_usage_slot'), $1) as "held!""#,
        i32::from(slot),
    )
    .fetch_one(connection)
    .await?;
    Ok((row.now, row.held))
}
