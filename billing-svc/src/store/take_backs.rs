//! `eco_overage_charges`: charges that are taken off drafts which nobody finalises.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::period::PeriodKey;

/// Why such a charge failed, as a word.
const TAKEN_BACK: &str = "TAKEN_BACK";

/// A charge whose item is being taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeBack {
    /// The charge.
    pub charge_id: Uuid,
    /// The attempt that has the item.
    pub attempt: i32,
    /// Its period.
    pub period: PeriodKey,
    /// Customer that was charged.
    pub customer: String,
    /// The item.
    pub item_id: String,
}

/// Writes down that those of an account's charges are taken back that have one of these items.
#[tracing::instrument(name = "db.eco_overage_charges.begin_take_back", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn begin(db: &mut PgConnection, eco_id: &str, item_ids: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set take_back_time = now()
         where eco_id = $1 and status = 'succeeded' and stripe_invoice_item_id = any ($2) and take_back_time is null
           and invoiced_time is null",
        eco_id,
        item_ids,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Charges of an account on a customer that are being taken back.
#[tracing::instrument(name = "db.eco_overage_charges.taken_back", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn begun(db: &mut PgConnection, eco_id: &str, customer: &str) -> sqlx::Result<Vec<TakeBack>> {
    struct Row {
        charge_id: Uuid,
        attempt: i32,
        eco_id: String,
        period_start: DateTime<Utc>,
        customer: String,
        item_id: String,
    }
    let rows = sqlx::query_as!(
        Row,
        r#"select charge_id, attempt, eco_id, period_start, payload ->> 'customer' as "customer!",
                  stripe_invoice_item_id as "item_id!"
           from eco_overage_charges
           where eco_id = $1 and payload ->> 'customer' = $2 and take_back_time is not null and status = 'succeeded'
           order by created_time, charge_id"#,
        eco_id,
        customer,
    )
    .fetch_all(db)
    .await?;
    let take_backs = rows.into_iter().map(|row| TakeBack {
        charge_id: row.charge_id,
        attempt: row.attempt,
        period: PeriodKey { eco_id: row.eco_id, start: row.period_start },
        customer: row.customer,
        item_id: row.item_id,
    });
    Ok(take_backs.collect())
}

/// The item is gone: the charge was not made after all. False: somebody else was quicker.
#[tracing::instrument(name = "db.eco_overage_charges.finish_take_back", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish(db: &mut PgConnection, take_back: &TakeBack) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_overage_charges set status = 'failed', stripe_invoice_item_id = null, failure_reason = $3, finished_time = now()
         where charge_id = $1 and attempt = $2 and status = 'succeeded' and take_back_time is not null",
        take_back.charge_id,
        take_back.attempt,
        TAKEN_BACK,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The item stays: it is on an invoice that was finalised after all.
#[tracing::instrument(name = "db.eco_overage_charges.give_up_take_back", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn give_up(db: &mut PgConnection, take_back: &TakeBack) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set take_back_time = null where charge_id = $1 and attempt = $2",
        take_back.charge_id,
        take_back.attempt,
    )
    .execute(db)
    .await?;
    Ok(())
}
