//! `eco_overage_charges`: charges that are to be rechecked: those of which an attempt was replaced whose request may have
//! taken effect after all.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::charges::Row;
use crate::domain::{
    basis::Basis,
    charge::{Intent, InvoiceItem, RECHECK_AFTER},
};

/// Accounts with charges that are to be rechecked now, after one of them. A period with a charge in doubt comes
/// after that is resolved.
#[tracing::instrument(name = "db.eco_overage_charges.accounts_to_recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn accounts(
    db: &mut PgConnection,
    accounts: Option<&[String]>,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select h.eco_id as "eco_id!" from (
               select distinct h.eco_id collate "C" as eco_id
               from eco_overage_charges h
               where h.recheck_time <= now() and h.eco_id collate "C" > $2
                 and ($1::text[] is null or h.eco_id = any ($1))
                 and not exists (select from eco_overage_charges p where p.eco_id = h.eco_id
                                 and p.period_start = h.period_start and p.status = 'pending')) h
           order by h.eco_id
           limit $3"#,
        accounts as Option<&[String]>,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Charges of an account that are to be rechecked now, each as its last attempt that was replaced.
#[tracing::instrument(name = "db.eco_overage_charges.due_rechecks", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn due(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Vec<Intent>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select distinct on (h.charge_id)
                  h.charge_id, h.attempt, h.eco_id, h.period_start, h.period_end, h.sequence, h.units_from,
                  h.units_to, h.amount_micros, h.payload as "payload: Json<InvoiceItem>",
                  h.basis as "basis: Json<Basis>"
           from eco_overage_charges h
           where h.recheck_time <= now() and h.eco_id = $1
             and not exists (select from eco_overage_charges p where p.eco_id = h.eco_id
                             and p.period_start = h.period_start and p.status = 'pending')
           order by h.charge_id, h.attempt desc"#,
        eco_id,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Intent::from).collect())
}

/// A charge as the ledger has it.
#[derive(Debug)]
pub struct Seen {
    /// Its items.
    pub items: Vec<String>,
    /// The attempts that are to be rechecked.
    attempts: Vec<i32>,
    /// When each is.
    recheck_times: Vec<DateTime<Utc>>,
}

impl Seen {
    /// When the last of them is to be rechecked.
    pub fn last_due(&self) -> Option<DateTime<Utc>> {
        self.recheck_times.iter().max().copied()
    }
}

/// How the ledger has a charge, before its items are listed.
#[tracing::instrument(name = "db.eco_overage_charges.seen", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn seen(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<Seen> {
    sqlx::query_as!(
        Seen,
        r#"select coalesce(array_agg(stripe_invoice_item_id order by stripe_invoice_item_id)
                               filter (where status = 'succeeded'), '{}') as "items!",
                  coalesce(array_agg(attempt order by attempt) filter (where recheck_time is not null), '{}') as "attempts!",
                  coalesce(array_agg(recheck_time order by attempt) filter (where recheck_time is not null), '{}')
                      as "recheck_times!"
           from eco_overage_charges where charge_id = $1"#,
        charge_id,
    )
    .fetch_one(db)
    .await
}

/// An attempt of the charge has come to its end just now: what it replaced is rechecked from then on.
#[tracing::instrument(name = "db.eco_overage_charges.postpone_recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub(super) async fn postpone(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<()> {
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

/// Has a charge rechecked after a while, since an attempt that is over may have an item at Stripe all the same.
#[tracing::instrument(name = "db.eco_overage_charges.recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn ask(db: &mut PgConnection, charge_id: Uuid, attempt: i32, after: TimeDelta) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set recheck_time = now() + $3::interval
         where charge_id = $1 and attempt = $2 and status <> 'pending'",
        charge_id,
        attempt,
        after as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The charge was rechecked as it was seen: what is to be rechecked since, stays so.
#[tracing::instrument(name = "db.eco_overage_charges.clear_recheck", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn clear(db: &mut PgConnection, charge_id: Uuid, seen: &Seen) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges h set recheck_time = null
         from unnest($2::int[], $3::timestamptz[]) as s (attempt, recheck_time)
         where h.charge_id = $1 and h.attempt = s.attempt and h.recheck_time = s.recheck_time",
        charge_id,
        &seen.attempts,
        &seen.recheck_times,
    )
    .execute(db)
    .await?;
    Ok(())
}
