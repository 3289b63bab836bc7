//! `eco_overage_charges`: the ledger, and which of its charges are to be rechecked: those of which an attempt
//! was replaced whose request may have taken effect after all.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, money::Micros, period::Period};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::unknown_word;
use crate::domain::{
    charge::{Charge, Intent, InvoiceItem, KEY_LIFE, RECHECK_AFTER, Readiness},
    overage::Difference,
    period::PeriodKey,
};

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
}

impl From<Row> for Intent {
    fn from(row: Row) -> Self {
        Self {
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
        }
    }
}

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
    let row = sqlx::query_as!(
        Row,
        r#"select charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to,
                  amount_micros, payload as "payload: Json<InvoiceItem>"
           from eco_overage_charges
           where eco_id = $1 and period_start = $2 and status = 'pending'"#,
        period.eco_id,
        period.start,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Intent::from))
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
    Ok(young.map_or(Readiness::Gone, |young| if young { Readiness::Send } else { Readiness::Old }))
}

/// Records that Stripe has the item, and lets the attempts before it be rechecked later; false: the attempt was no longer in doubt.
#[tracing::instrument(name = "db.eco_overage_charges.succeed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn succeed(
    db: &mut PgConnection,
    charge_id: Uuid,
    attempt: i32,
    item_id: &str,
) -> sqlx::Result<bool> {
    postpone_recheck(db, charge_id).await?;
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
    postpone_recheck(db, charge_id).await?;
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
        RECHECK_AFTER as _,
    )
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    let next = intent.next_attempt();
    insert(db, &next, run_id).await?;
    Ok(Some(next))
}

/// Charges that are to be rechecked now, each as its last attempt that was replaced, in the order of their
/// accounts. A period with a charge in doubt comes after that is resolved.
#[tracing::instrument(name = "db.eco_overage_charges.due_rechecks", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn due_rechecks(db: &mut PgConnection, accounts: Option<&[String]>) -> sqlx::Result<Vec<Intent>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select distinct on (h.eco_id, h.charge_id)
                  h.charge_id, h.attempt, h.eco_id, h.period_start, h.period_end, h.sequence, h.units_from,
                  h.units_to, h.amount_micros, h.payload as "payload: Json<InvoiceItem>"
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
    Ok(rows.into_iter().map(Intent::from).collect())
}

/// Number of a charge's last attempt.
#[tracing::instrument(name = "db.eco_overage_charges.last_attempt", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn last_attempt(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        r#"select max(attempt) as "last!" from eco_overage_charges where charge_id = $1"#,
        charge_id,
    )
    .fetch_one(db)
    .await
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
async fn postpone_recheck(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set recheck_time = now() + $2::interval
         where charge_id = $1 and recheck_time is not null",
        charge_id,
        RECHECK_AFTER as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The charge was rechecked.
#[tracing::instrument(name = "db.eco_overage_charges.clear_recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn clear_recheck(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set recheck_time = null where charge_id = $1 and recheck_time is not null",
        charge_id,
    )
    .execute(db)
    .await?;
    Ok(())
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
              sent_time, finished_time)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'succeeded', $12, $13, $14, $15, $15, now())
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
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An attempt that was taken for failed has its item at Stripe after all; false: it is not in that state any more,
/// or its charge has another live attempt.
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
