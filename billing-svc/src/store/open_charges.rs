//! `eco_overage_charges`: charges whose items are not known to be on a final invoice.

use std::collections::HashSet;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::reconciliation::Scope;

/// Customers on whom an account has such charges: as many as it ever had, mostly one.
#[tracing::instrument(name = "db.eco_overage_charges.open_customers", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn customers(db: &mut PgConnection, eco_id: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select distinct payload ->> 'customer' as "customer!" from eco_overage_charges
           where eco_id = $1 and status = 'succeeded' and invoiced_time is null order by 1"#,
        eco_id,
    )
    .fetch_all(db)
    .await
}

/// Which of these items are such charges' of an account.
#[tracing::instrument(name = "db.eco_overage_charges.open_items", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn among(
    db: &mut PgConnection,
    eco_id: &str,
    item_ids: &[String],
) -> sqlx::Result<HashSet<String>> {
    let items = sqlx::query_scalar!(
        r#"select stripe_invoice_item_id as "id!" from eco_overage_charges
           where eco_id = $1 and status = 'succeeded' and invoiced_time is null and stripe_invoice_item_id = any ($2)"#,
        eco_id,
        item_ids,
    )
    .fetch_all(db)
    .await?;
    Ok(items.into_iter().collect())
}

/// These items are on a final invoice.
#[tracing::instrument(name = "db.eco_overage_charges.set_invoiced", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_invoiced(db: &mut PgConnection, eco_id: &str, item_ids: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "update eco_overage_charges set invoiced_time = now()
         where eco_id = $1 and stripe_invoice_item_id = any ($2) and status = 'succeeded' and invoiced_time is null",
        eco_id,
        item_ids,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The same for all items that Stripe's books have on one.
#[tracing::instrument(name = "db.eco_overage_charges.set_invoiced_by_books", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn set_invoiced_by_books(db: &mut PgConnection) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "update eco_overage_charges h set invoiced_time = now()
         from eco_stripe_items i
         join eco_stripe_invoices v on v.invoice_id = i.invoice_id and v.status = 'finalised'
         where h.stripe_invoice_item_id = i.item_id and h.status = 'succeeded' and h.invoiced_time is null",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// A charge that Stripe's books do not have in the part of them that was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    /// The charge.
    pub charge_id: Uuid,
    /// Its item.
    pub item_id: String,
}

/// Such charges that the listing does not have, the oldest first.
#[tracing::instrument(name = "db.eco_overage_charges.unlisted", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn unlisted(db: &mut PgConnection, scope: &Scope, limit: i64) -> sqlx::Result<Vec<Unlisted>> {
    sqlx::query_as!(
        Unlisted,
        r#"select h.charge_id, h.stripe_invoice_item_id as "item_id!" from eco_overage_charges h
           where h.status = 'succeeded' and h.invoiced_time is null
             and ($1::text[] is null or h.eco_id = any ($1))
             and ($2::timestamptz is null or h.period_start <= $2 and h.period_end > $2)
             and not exists (select from eco_stripe_items i where i.item_id = h.stripe_invoice_item_id)
           order by h.created_time limit $3"#,
        scope.accounts.as_deref() as Option<&[String]>,
        scope.period_time,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Invoices that items of the listing are on, and that it does not have itself, by their ids, after one of them.
#[tracing::instrument(name = "db.eco_stripe_items.unlisted_invoices", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn unlisted_invoices(db: &mut PgConnection, after: &str, limit: i64) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select distinct i.invoice_id collate "C" as "id!" from eco_stripe_items i
           join eco_overage_charges h on h.stripe_invoice_item_id = i.item_id
               and h.status = 'succeeded' and h.invoiced_time is null
           where i.invoice_id collate "C" > $1
             and not exists (select from eco_stripe_invoices v where v.invoice_id = i.invoice_id)
           order by 1 limit $2"#,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}
