//! `eco_overage_charges`: the ledger.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, money::Micros, period::Period};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{facts::PeriodKey, rechecks, unknown_word};
use crate::domain::{
    charge::{Charge, Intent, InvoiceItem},
    overage::Difference,
};

/// Age from which an attempt is never sent again: Stripe may forget its key after 24 hours.
const KEY_LIFE: chrono::Duration = chrono::Duration::hours(23);

/// Writes an intent down.
#[tracing::instrument(name = "db.eco_overage_charges.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, intent: &Intent, run_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_overage_charges
             (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
              amount_minor, currency_code, status, idempotency_key, payload, run_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'pending', $12, $13, $14)",
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
        run_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The attempt of a period that is in doubt, as it was written down.
#[tracing::instrument(name = "db.eco_overage_charges.pending", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn pending(db: &mut PgConnection, period: &PeriodKey) -> sqlx::Result<Option<Intent>> {
    let row = sqlx::query!(
        r#"select charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to,
                  amount_micros, payload as "payload: Json<InvoiceItem>"
           from eco_overage_charges
           where eco_id = $1 and period_start = $2 and status = 'pending'"#,
        period.0,
        period.1,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Intent {
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
    }))
}

/// What may be done with an attempt now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It may be sent; the time is noted.
    Send,
    /// Too old: its key may be forgotten.
    Old,
    /// No longer in doubt, or replaced.
    Gone,
}

/// Reads an attempt again, right before it is sent: its state, and its age by database time.
#[tracing::instrument(name = "db.eco_overage_charges.ready", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn ready(db: &mut PgConnection, charge_id: Uuid, attempt: i32) -> sqlx::Result<Readiness> {
    let young = sqlx::query_scalar!(
        r#"update eco_overage_charges
           set sent_time = case when created_time > now() - $3::interval then now() else sent_time end
           where charge_id = $1 and attempt = $2 and status = 'pending'
           returning created_time > now() - $3::interval as "young!""#,
        charge_id,
        attempt,
        KEY_LIFE as _,
    )
    .fetch_optional(db)
    .await?;
    Ok(match young {
        Some(true) => Readiness::Send,
        Some(false) => Readiness::Old,
        None => Readiness::Gone,
    })
}

/// Records that Stripe has the item, and lets the attempts before it be rechecked later; false: the attempt was no longer in doubt.
#[tracing::instrument(name = "db.eco_overage_charges.succeed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn succeed(
    db: &mut PgConnection,
    charge_id: Uuid,
    attempt: i32,
    item_id: &str,
) -> sqlx::Result<bool> {
    rechecks::postpone(db, charge_id).await?;
    let done = sqlx::query!(
        "update eco_overage_charges
         set status = 'succeeded', stripe_invoice_item_id = $3, finished_time = now()
         where charge_id = $1 and attempt = $2 and status = 'pending'",
        charge_id,
        attempt,
        item_id,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records that Stripe refused the attempt for good, and lets the attempts before it be rechecked later;
/// false: it was no longer in doubt.
#[tracing::instrument(name = "db.eco_overage_charges.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(db: &mut PgConnection, charge_id: Uuid, attempt: i32, reason: &str) -> sqlx::Result<bool> {
    rechecks::postpone(db, charge_id).await?;
    let done = sqlx::query!(
        "update eco_overage_charges
         set status = 'failed', failure_reason = $3, finished_time = now()
         where charge_id = $1 and attempt = $2 and status = 'pending'",
        charge_id,
        attempt,
        reason,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Replaces an attempt in doubt by the next one: the same charge and payload under a new key; its own request
/// may still take effect, so it is rechecked later. `None`: it was no longer in doubt.
#[tracing::instrument(name = "db.eco_overage_charges.replace", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn replace(db: &mut PgConnection, intent: &Intent, run_id: Uuid) -> sqlx::Result<Option<Intent>> {
    let done = sqlx::query!(
        "update eco_overage_charges
         set status = 'superseded', finished_time = now(), recheck_time = now() + $3::interval
         where charge_id = $1 and attempt = $2 and status = 'pending'",
        intent.charge_id,
        intent.attempt,
        rechecks::AFTER as _,
    )
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    let next = Intent { attempt: intent.attempt + 1, ..intent.clone() };
    insert(db, &next, run_id).await?;
    Ok(Some(next))
}

/// Charges of an account, newest first, after a place in that order.
#[tracing::instrument(name = "db.eco_overage_charges.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    eco_id: &EcoId,
    after: Option<&(DateTime<Utc>, Uuid, i32)>,
    limit: i64,
) -> sqlx::Result<Vec<Charge>> {
    let rows = sqlx::query!(
        "select charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
                currency_code, status, stripe_invoice_item_id, failure_reason, created_time
         from eco_overage_charges
         where eco_id = $1
           and ($2::timestamptz is null or (created_time, charge_id, attempt) < ($2, $3, $4))
         order by created_time desc, charge_id desc, attempt desc
         limit $5",
        eco_id.as_str(),
        after.map(|a| a.0),
        after.map(|a| a.1),
        after.map(|a| a.2),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Charge {
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
                currency_code: row.currency_code,
                status: row.status.parse().map_err(unknown_word)?,
                stripe_invoice_item_id: row.stripe_invoice_item_id,
                failure_reason: row.failure_reason,
                created_time: row.created_time,
            })
        })
        .collect()
}
