//! `eco_overage_charges`: the ledger. Which of its charges are to be rechecked is in [`super::rechecks`].

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use nexus_core::{money::Micros, period::Period};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::rechecks;
use crate::domain::{
    basis::Basis,
    charge::{Intent, InvoiceItem, KEY_LIFE, RECHECK_AFTER, Readiness},
    overage::Difference,
    period::PeriodKey,
};

/// A charge as it is read.
pub(super) struct Row {
    pub(super) charge_id: Uuid,
    pub(super) attempt: i32,
    pub(super) eco_id: String,
    pub(super) period_start: DateTime<Utc>,
    pub(super) period_end: DateTime<Utc>,
    pub(super) sequence: i32,
    pub(super) units_from: i64,
    pub(super) units_to: i64,
    pub(super) amount_micros: i64,
    pub(super) payload: Json<InvoiceItem>,
    pub(super) basis: Option<Json<Basis>>,
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
            basis: row.basis.map(|basis| basis.0),
        }
    }
}

/// Writes an intent down.
pub async fn insert(db: &mut PgConnection, intent: &Intent, run_id: Option<Uuid>) -> sqlx::Result<()> {
    insert_all(db, std::slice::from_ref(intent), run_id).await
}

/// Writes intents down.
#[tracing::instrument(name = "db.eco_overage_charges.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert_all(db: &mut PgConnection, intents: &[Intent], run_id: Option<Uuid>) -> sqlx::Result<()> {
    let of = |column: fn(&Intent) -> i64| intents.iter().map(column).collect::<Vec<_>>();
    let times = |column: fn(&Intent) -> DateTime<Utc>| intents.iter().map(column).collect::<Vec<_>>();
    let texts = |column: fn(&Intent) -> &str| intents.iter().map(column).collect::<Vec<_>>();
    let charge_ids: Vec<Uuid> = intents.iter().map(|intent| intent.charge_id).collect();
    let attempts: Vec<i32> = intents.iter().map(|intent| intent.attempt).collect();
    let sequences: Vec<i32> = intents.iter().map(|intent| intent.sequence).collect();
    let keys: Vec<String> = intents.iter().map(Intent::key).collect();
    let payloads: Vec<Json<&InvoiceItem>> = intents.iter().map(|intent| Json(&intent.item)).collect();
    let bases: Vec<Option<Json<&Basis>>> =
        intents.iter().map(|intent| intent.basis.as_ref().map(Json)).collect();
    sqlx::query!(
        "insert into eco_overage_charges
             (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
              amount_minor, currency_code, status, idempotency_key, payload, run_id, basis)
         select u.charge_id, u.attempt, u.eco_id, u.period_start, u.period_end, u.sequence, u.units_from, u.units_to,
                u.amount_micros, u.amount_minor, u.currency_code, 'pending', u.idempotency_key, u.payload, $14,
                u.basis
         from unnest($1::uuid[], $2::int[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::int[], $7::bigint[],
                     $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::jsonb[], $15::jsonb[])
              as u (charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to,
                    amount_micros, amount_minor, currency_code, idempotency_key, payload, basis)",
        &charge_ids,
        &attempts,
        &texts(|intent| &intent.eco_id) as &[&str],
        &times(|intent| intent.period.start),
        &times(|intent| intent.period.end),
        &sequences,
        &of(|intent| intent.difference.units_from),
        &of(|intent| intent.difference.units_to),
        &of(|intent| intent.difference.amount.0),
        &of(|intent| intent.item.amount_minor),
        &texts(|intent| &intent.item.currency) as &[&str],
        &keys,
        &payloads as &[Json<&InvoiceItem>],
        run_id,
        &bases as &[Option<Json<&Basis>>],
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
                  amount_micros, payload as "payload: Json<InvoiceItem>", basis as "basis: Json<Basis>"
           from eco_overage_charges
           where eco_id = $1 and period_start = $2 and status = 'pending'"#,
        period.eco_id,
        period.start,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Intent::from))
}

/// Reads attempts again, right before they are sent by a run: their state, and their age by database time.
#[tracing::instrument(name = "db.eco_overage_charges.ready", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn ready(
    db: &mut PgConnection,
    attempts: &[(Uuid, i32)],
    run_id: Option<Uuid>,
) -> sqlx::Result<Vec<Readiness>> {
    let (charge_ids, numbers): (Vec<Uuid>, Vec<i32>) = attempts.iter().copied().unzip();
    let found = sqlx::query!(
        r#"update eco_overage_charges h
           set sent_time = case when h.created_time > now() - $3::interval then now() else h.sent_time end,
               run_id = $4
           from unnest($1::uuid[], $2::int[]) as k (charge_id, attempt)
           where h.charge_id = k.charge_id and h.attempt = k.attempt and h.status = 'pending'
           returning h.charge_id, h.attempt, h.created_time > now() - $3::interval as "young!""#,
        &charge_ids,
        &numbers,
        KEY_LIFE as _,
        run_id,
    )
    .fetch_all(db)
    .await?;
    let young: HashMap<_, _> =
        found.into_iter().map(|row| ((row.charge_id, row.attempt), row.young)).collect();
    let readiness = |attempt| match young.get(attempt) {
        Some(true) => Readiness::Send,
        Some(false) => Readiness::Old,
        None => Readiness::Gone,
    };
    Ok(attempts.iter().map(readiness).collect())
}

/// An item that came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Charge.
    pub charge_id: Uuid,
    /// Attempt.
    pub attempt: i32,
    /// Item.
    pub item_id: String,
}

/// Records that Stripe has the item, and lets the attempts before it be rechecked later; false: the attempt was no
/// longer in doubt.
pub async fn succeed(
    db: &mut PgConnection,
    charge_id: Uuid,
    attempt: i32,
    item_id: &str,
) -> sqlx::Result<bool> {
    let made = Made { charge_id, attempt, item_id: item_id.to_owned() };
    Ok(succeed_all(db, &[made]).await? == [true])
}

/// The same for items of several charges.
#[tracing::instrument(name = "db.eco_overage_charges.succeed", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn succeed_all(db: &mut PgConnection, made: &[Made]) -> sqlx::Result<Vec<bool>> {
    let charge_ids: Vec<Uuid> = made.iter().map(|made| made.charge_id).collect();
    let attempts: Vec<i32> = made.iter().map(|made| made.attempt).collect();
    let item_ids: Vec<&str> = made.iter().map(|made| made.item_id.as_str()).collect();
    let done: HashSet<Uuid> = sqlx::query_scalar!(
        "with postponed as (
             update eco_overage_charges set recheck_time = now() + $4::interval
             where charge_id = any ($1) and recheck_time is not null)
         update eco_overage_charges h
         set status = 'succeeded', stripe_invoice_item_id = k.item_id, finished_time = now()
         from unnest($1::uuid[], $2::int[], $3::text[]) as k (charge_id, attempt, item_id)
         where h.charge_id = k.charge_id and h.attempt = k.attempt and h.status = 'pending'
         returning h.charge_id",
        &charge_ids,
        &attempts,
        &item_ids as &[&str],
        RECHECK_AFTER as _,
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .collect();
    Ok(made.iter().map(|made| done.contains(&made.charge_id)).collect())
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

/// Replaces an attempt by the next one: the same charge under a new key; its own request may still take effect, so it
/// is rechecked later. False: it was no longer in doubt.
#[tracing::instrument(name = "db.eco_overage_charges.replace", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn replace(
    db: &mut PgConnection,
    intent: &Intent,
    next: &Intent,
    run_id: Option<Uuid>,
) -> sqlx::Result<bool> {
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
        return Ok(false);
    }
    insert(db, next, run_id).await?;
    Ok(true)
}

/// Periods of an account in which a charge is in doubt.
#[tracing::instrument(name = "db.eco_overage_charges.periods_in_doubt", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn periods_in_doubt(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Vec<PeriodKey>> {
    sqlx::query_as!(
        PeriodKey,
        "select eco_id, period_start as start from eco_overage_charges
         where eco_id = $1 and status = 'pending' order by period_start",
        eco_id,
    )
    .fetch_all(db)
    .await
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
           where charge_id = $1 and status = 'succeeded' order by 1"#,
        charge_id,
    )
    .fetch_all(db)
    .await
}

/// When a charge was written down first.
#[tracing::instrument(name = "db.eco_overage_charges.first_written", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn first_written(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(
        r#"select min(created_time) as "first!" from eco_overage_charges where charge_id = $1"#,
        charge_id,
    )
    .fetch_one(db)
    .await
}
