//! `eco_stripe_items` and `eco_stripe_invoices`: Stripe's books while they are compared with the ledger.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use nexus_core::{money::Micros, period::Period};
use sqlx::PgConnection;
use uuid::Uuid;

use super::unknown_word;
use crate::domain::{
    books::{BookInvoice, BookItem, Home, LedgerRow, RESOLVED_WITHIN, charge_of, period_of},
    reconciliation::Scope,
};

/// Empties both.
#[tracing::instrument(name = "db.eco_stripe_items.clear", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn clear(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("truncate eco_stripe_items, eco_stripe_invoices").execute(db).await?;
    Ok(())
}

/// Keeps items: those that name a charge, and those that the ledger knows; returns how many of them are new.
#[tracing::instrument(name = "db.eco_stripe_items.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert_items(db: &mut PgConnection, items: &[BookItem]) -> sqlx::Result<u64> {
    let column = |text: fn(&BookItem) -> &str| items.iter().map(text).collect::<Vec<_>>();
    let charges: Vec<Option<Uuid>> = items.iter().map(|item| charge_of(&item.metadata)).collect();
    let accounts: Vec<Option<&str>> =
        items.iter().map(|item| item.metadata.get("eco_id").map(String::as_str)).collect();
    let amounts: Vec<i64> = items.iter().map(|item| item.amount_minor).collect();
    let periods: Vec<Option<Period>> = items.iter().map(|item| period_of(&item.metadata)).collect();
    let starts: Vec<Option<DateTime<Utc>>> = periods.iter().map(|period| period.map(|p| p.start)).collect();
    let ends: Vec<Option<DateTime<Utc>>> = periods.iter().map(|period| period.map(|p| p.end)).collect();
    let invoices: Vec<Option<&str>> = items.iter().map(|item| item.invoice_id.as_deref()).collect();
    let times: Vec<DateTime<Utc>> = items.iter().map(|item| item.created).collect();
    let done = sqlx::query!(
        "insert into eco_stripe_items (item_id, charge_id, eco_id, customer, amount_minor, currency_code, period_start,
                                       period_end, invoice_id, created_time)
         select u.* from unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[],
                                $7::timestamptz[], $8::timestamptz[], $9::text[], $10::timestamptz[])
             as u (item_id, charge_id, eco_id, customer, amount_minor, currency_code, period_start, period_end,
                   invoice_id, created_time)
         where u.charge_id is not null
            or exists (select from eco_overage_charges h where h.stripe_invoice_item_id = u.item_id)
         on conflict do nothing",
        &column(|item| &item.item_id) as &[&str],
        &charges as &[Option<Uuid>],
        &accounts as &[Option<&str>],
        &column(|item| &item.customer) as &[&str],
        &amounts,
        &column(|item| &item.currency) as &[&str],
        &starts as &[Option<DateTime<Utc>>],
        &ends as &[Option<DateTime<Utc>>],
        &invoices as &[Option<&str>],
        &times,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Keeps invoices.
#[tracing::instrument(name = "db.eco_stripe_invoices.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert_invoices(db: &mut PgConnection, invoices: &[BookInvoice]) -> sqlx::Result<()> {
    let ids: Vec<&str> = invoices.iter().map(|invoice| invoice.invoice_id.as_str()).collect();
    let statuses: Vec<&str> = invoices.iter().map(|invoice| invoice.status.as_str()).collect();
    let times: Vec<DateTime<Utc>> = invoices.iter().map(|invoice| invoice.created).collect();
    sqlx::query!(
        "insert into eco_stripe_invoices (invoice_id, status, created_time)
         select * from unnest($1::text[], $2::text[], $3::timestamptz[])
         on conflict do nothing",
        &ids as &[&str],
        &statuses as &[&str],
        &times,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Customers that an account has at Stripe or had a charge on.
#[tracing::instrument(name = "db.eco_overage_charges.customers", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn customers(db: &mut PgConnection, accounts: &[String]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select stripe_customer_id as "customer!" from eco_identities
           where eco_id = any ($1) and stripe_customer_id is not null
           union
           select payload ->> 'customer' from eco_overage_charges where eco_id = any ($1)
           order by 1"#,
        accounts,
    )
    .fetch_all(db)
    .await
}

/// Where an account's items belong, those on these customers; `None`: there is no such account.
#[tracing::instrument(name = "db.eco_identities.home", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn home(db: &mut PgConnection, eco_id: &str, customers: &[&str]) -> sqlx::Result<Option<Home>> {
    sqlx::query_as!(
        Home,
        r#"select currency_code as currency,
                  array(select i.stripe_customer_id where i.stripe_customer_id is not null
                        union
                        select h.payload ->> 'customer' from eco_overage_charges h where h.eco_id = i.eco_id)
                      as "customers!",
                  array(select c from unnest($2::text[]) c
                        where not exists (select from eco_identities o where o.stripe_customer_id = c))
                      as "unclaimed!"
           from eco_identities i where eco_id = $1"#,
        eco_id,
        customers as &[&str],
    )
    .fetch_optional(db)
    .await
}

/// When the ledger was last written, as far as this database knows: what it has lost, it has lost after that. What a
/// reconciliation took over since does not count.
#[tracing::instrument(name = "db.eco_overage_charges.last_written", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn last_written(db: &mut PgConnection) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!("select max(created_time) from eco_overage_charges where taken_over_time is null")
        .fetch_one(db)
        .await
}

/// Charges of which ledger and listing do not say the same, and those that runs should have resolved long ago, in the
/// order of their ids. What the ledger had before `known_before` must be in a listing that began with items made at
/// `listed_from`.
#[tracing::instrument(name = "db.eco_stripe_items.suspects", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn suspects(
    db: &mut PgConnection,
    scope: &Scope,
    first_start: DateTime<Utc>,
    listed_from: Option<DateTime<Utc>>,
    known_before: DateTime<Utc>,
    limit: i64,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"select charge_id as "charge_id!" from (
               select i.charge_id from eco_stripe_items i
               where i.charge_id is not null
                 and not exists (
                     select from eco_overage_charges h
                     where h.stripe_invoice_item_id = i.item_id and h.charge_id = i.charge_id
                       and h.status = 'succeeded' and h.amount_minor = i.amount_minor
                       and h.currency_code = i.currency_code and h.payload ->> 'customer' = i.customer
                       and h.eco_id = i.eco_id and h.period_start = i.period_start and h.period_end = i.period_end)
               union
               select h.charge_id from eco_stripe_items i
               join eco_overage_charges h on h.stripe_invoice_item_id = i.item_id
               where h.charge_id is distinct from i.charge_id
               union
               select h.charge_id from eco_overage_charges h
               where h.status = 'succeeded' and h.finished_time < $5
                 and h.period_start >= $1 and ($2::timestamptz is null or h.period_start <= $2 and h.period_end > $2)
                 and ($3::text[] is null or h.eco_id = any ($3))
                 and ($4::timestamptz is null or h.created_time >= $4)
                 and not exists (select from eco_stripe_items i where i.item_id = h.stripe_invoice_item_id)
               union
               select h.charge_id from eco_overage_charges h
               where h.status = 'pending' and ($3::text[] is null or h.eco_id = any ($3))
                 and ($2::timestamptz is null or h.period_start <= $2 and h.period_end > $2)
                 and (select min(a.created_time) from eco_overage_charges a where a.charge_id = h.charge_id)
                     <= $5 - $6::interval
               union
               select h.charge_id from eco_overage_charges h
               where h.status = 'succeeded' and h.take_back_time <= $5 - $6::interval
                 and ($3::text[] is null or h.eco_id = any ($3))
                 and ($2::timestamptz is null or h.period_start <= $2 and h.period_end > $2)) s
           order by 1 limit $7"#,
        first_start,
        scope.period_time,
        scope.accounts.as_deref() as Option<&[String]>,
        listed_from,
        known_before,
        RESOLVED_WITHIN as _,
        limit,
    )
    .fetch_all(db)
    .await
}

/// The attempts of these charges, in order.
#[tracing::instrument(name = "db.eco_overage_charges.attempts", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn attempts(
    db: &mut PgConnection,
    charges: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, Vec<LedgerRow>>> {
    let rows = sqlx::query!(
        r#"select charge_id, attempt, eco_id, period_start, period_end, amount_micros, amount_minor, currency_code,
                  payload ->> 'customer' as "customer!", payload ->> 'description' as "description!",
                  payload -> 'metadata' ->> 'overage_calls' as calls, status, stripe_invoice_item_id, recheck_time,
                  created_time, take_back_time, invoiced_time is not null as "is_invoiced!"
           from eco_overage_charges where charge_id = any ($1) order by charge_id, attempt"#,
        charges,
    )
    .fetch_all(db)
    .await?;
    let mut found: HashMap<Uuid, Vec<LedgerRow>> = HashMap::new();
    for row in rows {
        found.entry(row.charge_id).or_default().push(LedgerRow {
            attempt: row.attempt,
            eco_id: row.eco_id,
            period: Period { start: row.period_start, end: row.period_end },
            amount: Micros(row.amount_micros),
            amount_minor: row.amount_minor,
            currency: row.currency_code,
            customer: row.customer,
            description: row.description,
            calls: row.calls,
            status: row.status.parse().map_err(unknown_word)?,
            item_id: row.stripe_invoice_item_id,
            recheck_time: row.recheck_time,
            created: row.created_time,
            take_back_time: row.take_back_time,
            is_invoiced: row.is_invoiced,
        });
    }
    Ok(found)
}

/// Items to look at of a charge: those of the listing that name it, unless the ledger has them for another one,
/// and those that the ledger has of it.
#[tracing::instrument(name = "db.eco_stripe_items.of_charge", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn items_of(db: &mut PgConnection, charge_id: Uuid) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select i.item_id as "item_id!" from eco_stripe_items i
           where i.charge_id = $1
             and not exists (select from eco_overage_charges h
                             where h.stripe_invoice_item_id = i.item_id and h.charge_id <> $1)
           union
           select stripe_invoice_item_id from eco_overage_charges
           where charge_id = $1 and stripe_invoice_item_id is not null
           order by 1"#,
        charge_id,
    )
    .fetch_all(db)
    .await
}

/// An item of the ledger that is on no invoice that is final, and should be.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Account.
    pub eco_id: String,
    /// Start of its period.
    pub period_start: DateTime<Utc>,
    /// The charge.
    pub charge_id: Uuid,
    /// The item.
    pub item_id: String,
    /// Amount.
    pub amount: Micros,
    /// ISO 4217.
    pub currency: String,
    /// Where it is; `None`: on no invoice at all.
    pub invoice_id: Option<String>,
    /// How that invoice is; `None`: it is not in the listing.
    pub invoice_status: Option<String>,
    /// When the item was made.
    pub created: DateTime<Utc>,
}

/// Items on no finalised invoice that should be on one by now. A pending one goes on the invoice of the month's
/// end, which is at most 31 days away; after the end of its subscription there is an invoice of its own. A draft
/// is finalised within hours.
#[tracing::instrument(name = "db.eco_stripe_items.waiting", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn waiting(
    db: &mut PgConnection,
    scope: &Scope,
    after: Option<&str>,
    limit: i64,
) -> sqlx::Result<Vec<Waiting>> {
    let rows = sqlx::query!(
        r#"select h.eco_id, h.period_start, h.charge_id, i.item_id, h.amount_micros, h.currency_code, i.invoice_id,
                  v.status as "status?", i.created_time
           from eco_stripe_items i
           join eco_overage_charges h on h.stripe_invoice_item_id = i.item_id and h.status = 'succeeded'
           left join eco_stripe_invoices v on v.invoice_id = i.invoice_id
           left join eco_subscriptions s on s.stripe_subscription_id = h.payload ->> 'subscription'
           where ($1::text is null or i.item_id > $1)
             and ($2::text[] is null or h.eco_id = any ($2))
             and ($3::timestamptz is null or h.period_start <= $3 and h.period_end > $3)
             and case when i.invoice_id is null
                      then i.created_time < now() - interval '35 days'
                           or greatest(i.created_time, s.ended_time) < now() - interval '2 days'
                              and s.ended_time is not null
                      else case v.status when 'finalised' then false
                                         when 'draft' then v.created_time < now() - interval '3 days'
                                         else true end
                 end
           order by i.item_id limit $4"#,
        after,
        scope.accounts.as_deref() as Option<&[String]>,
        scope.period_time,
        limit,
    )
    .fetch_all(db)
    .await?;
    let rows = rows.into_iter().map(|row| Waiting {
        eco_id: row.eco_id,
        period_start: row.period_start,
        charge_id: row.charge_id,
        item_id: row.item_id,
        amount: Micros(row.amount_micros),
        currency: row.currency_code,
        invoice_id: row.invoice_id,
        invoice_status: row.status,
        created: row.created_time,
    });
    Ok(rows.collect())
}
