//! `eco_mrr_movements_now`: the history of the MRR, which triggers write; with what came into force by itself.

use chrono::{DateTime, NaiveDate, Utc};
use nexus_core::money::{Currency, Micros};
use sqlx::PgConnection;

use super::parse;
use crate::domain::revenue::Moved;

/// Movements in a currency added up by kind and UTC month; those before the day `first` together.
#[tracing::instrument(
    name = "db.eco_mrr_movements.sums",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn sums(
    connection: &mut PgConnection,
    currency: Currency,
    first: NaiveDate,
) -> sqlx::Result<Vec<Moved>> {
    sqlx::query!(
        r#"
        select case when movement_time >= $2::date::timestamp at time zone 'UTC'
                    then date_trunc('month', movement_time at time zone 'UTC')::date end as month,
               kind as "kind!", sum(delta_micros)::bigint as "delta!"
        from eco_mrr_movements_now
        where currency_code = $1
        group by 1, 2
        "#,
        currency.as_str(),
        first
    )
    .try_map(|row| Ok(Moved { month: row.month, kind: parse(&row.kind)?, delta: Micros(row.delta) }))
    .fetch_all(connection)
    .await
}

/// When the history in a currency begins, if accounts paid before.
#[tracing::instrument(
    name = "db.eco_mrr_movements.begins",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn begins(
    connection: &mut PgConnection,
    currency: Currency,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        "select min(movement_time) from eco_mrr_movements where kind = 'opening' and currency_code = $1",
        currency.as_str()
    )
    .fetch_one(connection)
    .await
}
