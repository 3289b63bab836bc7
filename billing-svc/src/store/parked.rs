//! `eco_usage_records`: the periods that are parked, counted.

use sqlx::PgConnection;

/// What is parked for a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The reason, as a word.
    pub reason: String,
    /// Accounts with such periods.
    pub accounts: i64,
    /// The periods.
    pub periods: i64,
}

/// What is parked, by reason.
#[tracing::instrument(name = "db.eco_usage_records.count_parked", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn count(db: &mut PgConnection) -> sqlx::Result<Vec<Parked>> {
    sqlx::query_as!(
        Parked,
        r#"select parked_reason as "reason!", count(distinct eco_id) as "accounts!", count(*) as "periods!"
           from eco_usage_records
           where parked_reason is not null and settled_time is null
           group by parked_reason order by parked_reason"#,
    )
    .fetch_all(db)
    .await
}
