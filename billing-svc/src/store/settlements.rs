//! `eco_settlements`: invoices made for what an account was charged and no other invoice takes.

use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::domain::{
    charge::KEY_LIFE,
    invoice::NewInvoice,
    settlement::{self, Settlement},
};

/// A charge that no invoice of a cycle takes any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// Customer that was charged.
    pub customer: String,
    /// The subscription at Stripe that it goes with, and that has ended; empty: with none.
    pub subscription: String,
    /// ISO 4217.
    pub currency: String,
    /// Its item.
    pub item_id: String,
}

struct Row {
    settlement_id: Uuid,
    eco_id: String,
    number: i32,
    attempt: i32,
    young: bool,
    invoice: Json<NewInvoice>,
    stripe_invoice_id: Option<String>,
    item_ids: Vec<String>,
    filled: bool,
}

impl From<Row> for Settlement {
    fn from(row: Row) -> Self {
        Self {
            settlement_id: row.settlement_id,
            eco_id: row.eco_id,
            number: row.number,
            attempt: row.attempt,
            is_young: row.young,
            invoice: row.invoice.0,
            invoice_id: row.stripe_invoice_id,
            item_ids: row.item_ids,
            is_filled: row.filled,
        }
    }
}

/// The settlement of an account that is not finished.
#[tracing::instrument(name = "db.eco_settlements.open", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn open(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Option<Settlement>> {
    let row = sqlx::query_as!(
        Row,
        r#"select settlement_id, eco_id, number, attempt, attempt_time > now() - $2::interval as "young!",
                  invoice as "invoice: Json<NewInvoice>", stripe_invoice_id, item_ids,
                  filled_time is not null as "filled!"
           from eco_settlements where eco_id = $1 and finished_time is null"#,
        eco_id,
        KEY_LIFE as _,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Settlement::from))
}

/// What an account was charged that no invoice of a cycle takes any more, and that is not known to be on another, newest
/// first.
#[tracing::instrument(name = "db.eco_settlements.stranded", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn stranded(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Vec<Stranded>> {
    sqlx::query_as!(
        Stranded,
        r#"select h.customer as "customer!", h.stripe_subscription_id as "subscription!", h.currency_code as "currency!",
                  h.stripe_invoice_item_id as "item_id!"
           from eco_stranded_charges h
           where h.eco_id = $1
           order by h.finished_time desc, h.charge_id"#,
        eco_id,
    )
    .fetch_all(db)
    .await
}

/// Accounts with a subscription that is to be cleared, a settlement that is not finished, charges that no invoice takes
/// any more, or that are being taken back, by their ids, after one of them.
#[tracing::instrument(name = "db.eco_settlements.accounts", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn accounts(
    db: &mut PgConnection,
    accounts: Option<&[String]>,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select u.eco_id as "eco_id!" from (
               select e.eco_id from eco_ended_subscriptions e where e.cleared_time is null
               union
               select x.eco_id from eco_settlements x where x.finished_time is null
               union
               select h.eco_id from eco_stranded_charges h
               union
               select h.eco_id from eco_overage_charges h
               where h.take_back_time is not null and h.status = 'succeeded') u
           where ($1::text[] is null or u.eco_id = any ($1)) and u.eco_id collate "C" > $2
           order by u.eco_id collate "C"
           limit $3"#,
        accounts as Option<&[String]>,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Items that the ledger has of an account at a customer and that no invoice of a cycle of a subscription takes any
/// more, in the order of their charges.
#[tracing::instrument(name = "db.eco_overage_charges.items_of_customer", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn items(
    db: &mut PgConnection,
    eco_id: &str,
    customer: &str,
    subscription: &str,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select stripe_invoice_item_id as "id!" from eco_stranded_charges
           where eco_id = $1 and customer = $2 and stripe_subscription_id = $3
           order by created_time, charge_id, attempt"#,
        eco_id,
        customer,
        subscription,
    )
    .fetch_all(db)
    .await
}

/// Writes a settlement down for what goes with a charge, unless another one of the account was.
#[tracing::instrument(name = "db.eco_settlements.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, eco_id: &str, stranded: &Stranded) -> sqlx::Result<()> {
    let number = sqlx::query_scalar!(
        r#"select coalesce(max(number), 0) + 1 as "number!" from eco_settlements where eco_id = $1"#,
        eco_id,
    )
    .fetch_one(&mut *db)
    .await?;
    let invoice =
        settlement::invoice(eco_id, number, &stranded.customer, &stranded.subscription, &stranded.currency);
    sqlx::query!(
        "insert into eco_settlements (settlement_id, eco_id, number, invoice)
         values ($1, $2, $3, $4)
         on conflict do nothing",
        settlement::settlement_id(eco_id, number),
        eco_id,
        number,
        Json(&invoice) as _,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps what a step has led to, unless somebody else was quicker; false: then it is to be read again. A new attempt
/// is as old as its keeping.
#[tracing::instrument(name = "db.eco_settlements.keep", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn keep(db: &mut PgConnection, before: &Settlement, after: &Settlement) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_settlements
         set attempt = $3, attempt_time = case when attempt = $3 then attempt_time else now() end, invoice = $4,
             stripe_invoice_id = $5, item_ids = $6,
             filled_time = case when $7 then coalesce(filled_time, now()) end, failure_reason = null
         where settlement_id = $1 and attempt = $2 and finished_time is null
           and stripe_invoice_id is not distinct from $8 and (filled_time is not null) = $9",
        before.settlement_id,
        before.attempt,
        after.attempt,
        Json(&after.invoice) as _,
        after.invoice_id,
        &after.item_ids,
        after.is_filled,
        before.invoice_id,
        before.is_filled,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Nothing is pending that could be put on the invoice: it stays an empty draft. False: somebody else has come further,
/// and may have put it there.
#[tracing::instrument(name = "db.eco_settlements.finish_empty", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish_empty(db: &mut PgConnection, before: &Settlement) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update eco_settlements set finished_time = now(), failure_reason = null
         where settlement_id = $1 and attempt = $2 and finished_time is null
           and stripe_invoice_id is not distinct from $3 and filled_time is null",
        before.settlement_id,
        before.attempt,
        before.invoice_id,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The invoice is finalised.
#[tracing::instrument(name = "db.eco_settlements.finish", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn finish(db: &mut PgConnection, settlement_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_settlements set finished_time = now(), failure_reason = null
         where settlement_id = $1 and finished_time is null",
        settlement_id,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps why a settlement goes no further at present.
#[tracing::instrument(name = "db.eco_settlements.fail", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn fail(db: &mut PgConnection, settlement_id: Uuid, reason: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_settlements set failure_reason = $2 where settlement_id = $1 and finished_time is null",
        settlement_id,
        reason,
    )
    .execute(db)
    .await?;
    Ok(())
}
