//! `eco_overage_charges`: what runs charged in each currency.

use std::collections::HashMap;

use nexus_core::money::Micros;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::run::Totals;

/// The sums of these runs. As in `nexus_run_figures`, what was never sent counts for no run.
#[tracing::instrument(name = "db.eco_overage_charges.totals", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of(db: &mut PgConnection, run_ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, Totals>> {
    let rows = sqlx::query!(
        r#"select run_id as "run_id!", currency_code, sum(amount_micros)::bigint as "micros!"
           from eco_overage_charges
           where run_id = any ($1) and status = 'succeeded' and sent_time is not null
           group by run_id, currency_code"#,
        run_ids,
    )
    .fetch_all(db)
    .await?;
    let mut totals: HashMap<Uuid, Totals> = HashMap::new();
    for row in rows {
        totals.entry(row.run_id).or_default().insert(row.currency_code, Micros(row.micros));
    }
    Ok(totals)
}
