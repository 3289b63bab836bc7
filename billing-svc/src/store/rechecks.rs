//! `eco_overage_charges`: replaced attempts whose request may have taken effect after all.

use chrono::{DateTime, Utc};
use nexus_core::{money::Micros, period::Period};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::domain::{
    charge::{Intent, InvoiceItem},
    overage::Difference,
};

/// How long after the last attempt of a charge its items are looked through once more.
pub const AFTER: chrono::Duration = chrono::Duration::minutes(10);

/// A charge whose items are to be looked through.
#[derive(Debug, Clone)]
pub struct Recheck {
    /// Its last attempt that was replaced.
    pub replaced: Intent,
    /// Number of its last attempt.
    pub last_attempt: i32,
}

struct Row {
    charge_id: Uuid,
    attempt: i32,
    eco_id: String,
    period_start: DateTime<Utc>,
    period_end: DateTime<Utc>,
    sequence: i32,
    units_from: i64,
    units_to: i64,
    amount_micros: i64,
    payload: Json<InvoiceItem>,
    last: i32,
}

impl From<Row> for Recheck {
    fn from(row: Row) -> Self {
        let replaced = Intent {
            charge_id: row.charge_id,
            attempt: row.attempt,
            eco_id: row.eco_id,
            period: Period { start: row.period_start, end: row.period_end },
            sequence: row.sequence,
            difference: Difference {
                amount: Micros(row.amount_micros),
                units_from: row.units_from,
                units_to: row.units_to,
            },
            item: row.payload.0,
        };
        Self { replaced, last_attempt: row.last }
    }
}

/// Charges that are due, in the order of their accounts. A period with a charge in doubt comes after that
/// is resolved.
#[tracing::instrument(name = "db.eco_overage_charges.due_rechecks", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn due(db: &mut PgConnection, accounts: Option<&[String]>) -> sqlx::Result<Vec<Recheck>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select distinct on (h.eco_id, h.charge_id)
                  h.charge_id, h.attempt, h.eco_id, h.period_start, h.period_end, h.sequence, h.units_from,
                  h.units_to, h.amount_micros, h.payload as "payload: Json<InvoiceItem>",
                  (select max(a.attempt) from eco_overage_charges a where a.charge_id = h.charge_id) as "last!"
           from eco_overage_charges h
           where h.recheck_time <= now()
             and ($1::text[] is null or h.eco_id = any ($1))
             and not exists (select from eco_overage_charges p where p.eco_id = h.eco_id
                             and p.period_start = h.period_start and p.status = 'pending')
           order by h.eco_id, h.charge_id, h.attempt desc"#,
        accounts as Option<&[String]>,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Recheck::from).collect())
}

/// Ids of the items that the ledger has of a charge.
#[tracing::instrument(name = "db.eco_overage_charges.items", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn items(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select stripe_invoice_item_id as "id!" from eco_overage_charges
           where charge_id = $1 and status = 'succeeded'"#,
        charge_id,
    )
    .fetch_all(db)
    .await
}

/// An attempt of the charge has come to its end just now: what it replaced is rechecked from then on.
#[tracing::instrument(name = "db.eco_overage_charges.postpone_recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn postpone(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set recheck_time = now() + $2::interval
         where charge_id = $1 and recheck_time is not null",
        charge_id,
        AFTER as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The charge was rechecked.
#[tracing::instrument(name = "db.eco_overage_charges.clear_recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn clear(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set recheck_time = null where charge_id = $1 and recheck_time is not null",
        charge_id,
    )
    .execute(db)
    .await?;
    Ok(())
}
