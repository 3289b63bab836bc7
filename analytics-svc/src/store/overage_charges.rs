//! `eco_overage_charges`: billing-svc's ledger, read only.

use chrono::NaiveDate;
use nexus_core::money::{Currency, Micros};
use sqlx::PgConnection;

/// What was charged in a currency from the day `first` on, by the UTC month in which Stripe took it. Charges in doubt,
/// and those that were taken back, are not in it.
#[tracing::instrument(
    name = "db.eco_overage_charges.sums",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn sums(
    connection: &mut PgConnection,
    currency: Currency,
    first: NaiveDate,
) -> sqlx::Result<Vec<(NaiveDate, Micros)>> {
    sqlx::query!(
        r#"
        select date_trunc('month', finished_time at time zone 'UTC')::date as "month!",
               sum(amount_micros)::bigint as "charged!"
        from eco_overage_charges
        where status = 'succeeded' and currency_code = $1
          and finished_time >= $2::date::timestamp at time zone 'UTC'
        group by 1
        "#,
        currency.as_str(),
        first
    )
    .map(|row| (row.month, Micros(row.charged)))
    .fetch_all(connection)
    .await
}
