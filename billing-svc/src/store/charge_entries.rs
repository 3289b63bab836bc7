//! `eco_overage_charges` as people see them: listed, and explained.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, money::Micros, period::Period};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::unknown_word;
use crate::domain::{
    basis::{Basis, Kept, TakenOver},
    charge::Charge,
    overage::Difference,
};

struct Entry {
    charge_id: Uuid,
    attempt: i32,
    eco_id: String,
    period_start: DateTime<Utc>,
    period_end: DateTime<Utc>,
    sequence: i32,
    units_from: i64,
    units_to: i64,
    amount_micros: i64,
    currency_code: String,
    status: String,
    stripe_invoice_item_id: Option<String>,
    failure_reason: Option<String>,
    created_time: DateTime<Utc>,
}

impl TryFrom<Entry> for Charge {
    type Error = sqlx::Error;
    fn try_from(row: Entry) -> Result<Self, sqlx::Error> {
        Ok(Self {
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
    }
}

/// Charges of an account, newest first, after a place in that order.
#[tracing::instrument(name = "db.eco_overage_charges.list", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn list(
    db: &mut PgConnection,
    eco_id: &EcoId,
    after: Option<&(DateTime<Utc>, Uuid, i32)>,
    limit: i64,
) -> sqlx::Result<Vec<Charge>> {
    let rows = sqlx::query_as!(
        Entry,
        r#"select charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
                  currency_code, status, stripe_invoice_item_id, failure_reason, created_time
           from eco_overage_charges
           where eco_id = $1
             and ($2::timestamptz is null or (created_time, charge_id, attempt) < ($2, $3, $4))
           order by created_time desc, charge_id desc, attempt desc
           limit $5"#,
        eco_id.as_str(),
        after.map(|a| a.0),
        after.map(|a| a.1),
        after.map(|a| a.2),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Charge::try_from).collect()
}

/// A charge: the first attempt of it that is in force, else the last.
#[tracing::instrument(name = "db.eco_overage_charges.find", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<Option<Charge>> {
    let row = sqlx::query_as!(
        Entry,
        r#"select charge_id, attempt, eco_id, period_start, period_end, sequence, units_from, units_to, amount_micros,
                  currency_code, status, stripe_invoice_item_id, failure_reason, created_time
           from eco_overage_charges
           where charge_id = $1
           order by status not in ('pending', 'succeeded'),
                    case when status in ('pending', 'succeeded') then attempt else -attempt end
           limit 1"#,
        charge_id,
    )
    .fetch_optional(db)
    .await?;
    row.map(TryFrom::try_from).transpose()
}

/// What an attempt of a charge follows from.
#[tracing::instrument(name = "db.eco_overage_charges.kept", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn kept(db: &mut PgConnection, charge_id: Uuid, attempt: i32) -> sqlx::Result<Kept> {
    let row = sqlx::query!(
        r#"select h.basis as "basis: Json<Basis>", h.taken_over_time, f.basis as "first?: Json<Basis>"
           from eco_overage_charges h
           left join lateral (
               select o.basis from eco_overage_charges o
               where o.charge_id = h.charge_id and o.sequence = h.sequence and o.basis is not null
               order by o.attempt limit 1) f on true
           where h.charge_id = $1 and h.attempt = $2"#,
        charge_id,
        attempt,
    )
    .fetch_one(db)
    .await?;
    let first = row.first.map(|first| first.0);
    Ok(Kept {
        basis: row.basis.map(|basis| basis.0),
        taken_over: row.taken_over_time.map(|time| TakenOver { time, first }),
    })
}
