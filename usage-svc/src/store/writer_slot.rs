//! Slots of the counters. A writer holds a slot for the length of a flush (an advisory lock of the
//! transaction, so that nothing needs to be given back after a crash) and prefers the one it had last:
//! replicas settle on different slots and do not wait for each other's counter rows. A counter's update is
//! atomic whatever the slot, so sharing one costs waiting and nothing else.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// Slots there are: more than a dozen replicas have writers.
pub const SLOTS: i16 = 64;

/// Begins a flush: the database's clock, and the slot that is held now, the first free one from the `preferred` on.
/// With every slot taken, which no number of usual replicas does, there is none.
#[tracing::instrument(name = "db.writer_slot.hold", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_hold(
    connection: &mut PgConnection,
    preferred: i16,
) -> sqlx::Result<(DateTime<Utc>, Option<i16>)> {
    let row = sqlx::query!(
        r#"select now() as "now!",
                  (select ((n + $1::int) % $2::int)::smallint from generate_series(0, $2::int - 1) as n
                   where pg_try_advisory_xact_lock(hashtext('nexus_usage_slot'), (n + $1::int) % $2::int)
                   limit 1) as slot"#,
        i32::from(preferred),
        i32::from(SLOTS),
    )
    .fetch_one(connection)
    .await?;
    Ok((row.now, row.slot))
}
