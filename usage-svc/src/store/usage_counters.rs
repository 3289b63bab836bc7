//! `eco_usage_counters`, through `increment_api_calls`.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::domain::delta::{CounterDelta, CounterKey};

/// Adds to the counters of a slot.
#[tracing::instrument(name = "db.eco_usage_counters.upsert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = deltas.len()))]
pub async fn increment(
    connection: &mut PgConnection,
    slot: i16,
    deltas: &BTreeMap<CounterKey<'_>, CounterDelta>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "select increment_api_calls($1, $2, $3, $4, $5, $6, $7, $8)",
        &deltas.keys().map(|k| k.0).collect::<Vec<_>>() as &[&str],
        &deltas.keys().map(|k| k.1).collect::<Vec<_>>(),
        &deltas.keys().map(|k| k.2).collect::<Vec<_>>(),
        slot,
        &deltas.values().map(|d| d.recorded).collect::<Vec<_>>(),
        &deltas.values().map(|d| d.unadmitted).collect::<Vec<_>>(),
        &deltas.values().map(|d| d.test).collect::<Vec<_>>(),
        &deltas.values().map(|d| d.last_event_time).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
