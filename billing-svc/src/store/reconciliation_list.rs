//! `eco_reconciliations`, as a list.

use std::collections::BTreeMap;

use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::unknown_word;
use crate::domain::reconciliation::{Kind, Listed};

/// Reconciliations, newest first, after one of them: their ids grow with the time.
#[tracing::instrument(name = "db.eco_reconciliations.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(db: &mut PgConnection, after: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Listed>> {
    let rows = sqlx::query!(
        r#"select reconciliation_id, status, account_ids is not null or period_time is not null as "limited!", repair,
                  accounts, periods, items, difference_count, repaired_count, drift as "drift: Json<BTreeMap<Kind, i64>>",
                  started_time, finished_time
           from eco_reconciliations
           where $1::uuid is null or reconciliation_id < $1
           order by reconciliation_id desc
           limit $2"#,
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Listed {
                reconciliation_id: row.reconciliation_id,
                status: row.status.parse().map_err(unknown_word)?,
                limited: row.limited,
                repair: row.repair,
                accounts: row.accounts,
                periods: row.periods,
                items: row.items,
                differences: row.difference_count,
                repaired: row.repaired_count,
                left: row.drift.0,
                started_time: row.started_time,
                finished_time: row.finished_time,
            })
        })
        .collect()
}
