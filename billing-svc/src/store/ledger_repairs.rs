//! `eco_overage_charges`: charges that are brought to what Stripe has of them.

use chrono::{DateTime, Utc};
use nexus_core::{money::Micros, period::Period};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::domain::{
    charge::{Intent, InvoiceItem},
    overage::Difference,
};

/// Why a charge failed whose item is not at Stripe any more, as a word.
const ITEM_GONE: &str = "ITEM_GONE";

/// An attempt came to nothing: Stripe has no item of it any more, or one over nothing. False: it is not in doubt and does
/// not have this item, or that is on a final invoice.
#[tracing::instrument(name = "db.eco_overage_charges.fail_gone", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(
    db: &mut PgConnection,
    charge_id: Uuid,
    attempt: i32,
    item_id: Option<&str>,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_overage_charges
         set status = 'failed', stripe_invoice_item_id = null, failure_reason = $4, finished_time = now()
         where charge_id = $1 and attempt = $2 and status in ('pending', 'succeeded')
           and stripe_invoice_item_id is not distinct from $3 and invoiced_time is null",
        charge_id,
        attempt,
        item_id,
        ITEM_GONE,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Sets an attempt aside for another that Stripe has in its place, and returns it as it was; what it followed from is not
/// what the other follows from. `None`: it does not have this item any more.
#[tracing::instrument(name = "db.eco_overage_charges.set_aside", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_aside(
    db: &mut PgConnection,
    charge_id: Uuid,
    attempt: i32,
    item_id: Option<&str>,
) -> sqlx::Result<Option<Intent>> {
    struct Row {
        eco_id: String,
        period_start: DateTime<Utc>,
        period_end: DateTime<Utc>,
        sequence: i32,
        units_from: i64,
        units_to: i64,
        amount_micros: i64,
        payload: Json<InvoiceItem>,
    }
    let row = sqlx::query_as!(
        Row,
        r#"update eco_overage_charges
           set status = case when status = 'failed' then status else 'superseded' end, stripe_invoice_item_id = null,
               finished_time = now()
           where charge_id = $1 and attempt = $2 and stripe_invoice_item_id is not distinct from $3
             and failure_reason is distinct from 'TAKEN_BACK'
           returning eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
                     payload as "payload: Json<InvoiceItem>""#,
        charge_id,
        attempt,
        item_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Intent {
        charge_id,
        attempt,
        eco_id: row.eco_id,
        period: Period { start: row.period_start, end: row.period_end },
        sequence: row.sequence,
        difference: Difference {
            amount: Micros(row.amount_micros),
            units_from: row.units_from,
            units_to: row.units_to,
        },
        item: row.payload.0,
        basis: None,
    }))
}

/// Takes an item that is at Stripe into the ledger, as an attempt that succeeded when the item was made; false: the
/// ledger has it, or has another charge in its place.
#[tracing::instrument(name = "db.eco_overage_charges.adopt", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn adopt(
    db: &mut PgConnection,
    intent: &Intent,
    item_id: &str,
    made: DateTime<Utc>,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into eco_overage_charges
             (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
              amount_minor, currency_code, status, idempotency_key, payload, stripe_invoice_item_id, created_time,
              sent_time, finished_time, taken_over_time, basis)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'succeeded', $12, $13, $14, $15, $15, now(), now(), $16)
         on conflict do nothing",
        intent.charge_id,
        intent.attempt,
        intent.eco_id,
        intent.period.start,
        intent.period.end,
        intent.sequence,
        intent.difference.units_from,
        intent.difference.units_to,
        intent.difference.amount.0,
        intent.item.amount_minor,
        intent.item.currency,
        intent.key(),
        Json(&intent.item) as _,
        item_id,
        made,
        intent.basis.as_ref().map(Json) as _,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An attempt that was taken for failed has its item at Stripe after all; false: it is not in that state any more, its
/// charge has another live attempt, or its item was taken back.
#[tracing::instrument(name = "db.eco_overage_charges.revive", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn revive(
    db: &mut PgConnection,
    charge_id: Uuid,
    attempt: i32,
    item_id: &str,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_overage_charges h
         set status = 'succeeded', stripe_invoice_item_id = $3, failure_reason = null, recheck_time = null,
             finished_time = now()
         where charge_id = $1 and attempt = $2 and status in ('failed', 'superseded')
           and failure_reason is distinct from 'TAKEN_BACK'
           and not exists (select from eco_overage_charges o
                           where o.eco_id = h.eco_id and o.period_start = h.period_start
                             and o.sequence = h.sequence and o.status in ('pending', 'succeeded'))",
        charge_id,
        attempt,
        item_id,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
