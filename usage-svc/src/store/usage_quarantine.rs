//! `eco_usage_quarantine`: events that were acknowledged and could not be counted.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::quarantine::Quarantined;

/// Keeps events of a journal.
#[tracing::instrument(name = "db.eco_usage_quarantine.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = events.len()))]
pub async fn insert(
    connection: &mut PgConnection,
    journal: Uuid,
    events: &[Quarantined<'_>],
) -> sqlx::Result<()> {
    // A few at most, but for a journal that nobody drained for weeks.
    for Quarantined { number, event, reason } in events {
        let payload = &event.payload;
        sqlx::query!(
            "insert into eco_usage_quarantine (eco_id, journal_id, number, reason, event_id, event_time, units_count,
                 endpoint, method, status_code, response_time_ms, api_key_id, admission_id, accepted_time)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            event.eco_id.as_str(),
            journal,
            number,
            reason.as_str(),
            event.event_id,
            payload.event_time,
            payload.units_count,
            payload.endpoint,
            payload.method,
            payload.status_code,
            payload.response_time_ms,
            payload.api_key_id,
            payload.admission,
            event.accepted,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
