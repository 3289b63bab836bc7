//! `eco_plan_prices`: billing-svc's table, read only.

use sqlx::PgConnection;

/// Currencies that plans cost something in.
#[tracing::instrument(
    name = "db.eco_plan_prices.currencies",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn currencies(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select distinct currency_code from eco_plan_prices where monthly_micros > 0 or overage_micros > 0
         order by currency_code"
    )
    .fetch_all(connection)
    .await
}
