//! The ledger and Stripe's books.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use nexus_kit::db;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    adopt::{self, Adoption},
    repair,
    strays::Strays,
    work::Context,
};
use crate::{
    domain::{
        books::{self, BookItem, Finding, InvoiceStatus, LedgerRow, Repair, text},
        reconciliation::{CLOCK_MARGIN, Difference, Kind},
    },
    error::Error,
    payments::{
        Advice, Doubt,
        books::{Listing, Page},
        pace::{LONGEST_PAUSE, backoff},
    },
    store::{
        open_charges::{self, Unlisted},
        reconciliations,
        stripe_books::{self, Waiting},
        withheld,
    },
};

/// Times one question is asked at most.
const MAX_TRIES: u32 = 6;
/// Charges that are looked at more closely, read together.
const BATCH: usize = 100;
/// Items that are looked up one by one at most, because the listing does not have them; the oldest first. What is found to
/// be on a final invoice is not looked up again.
const MOST_LOOK_UPS: i64 = 2_000;
/// Charges that are looked at once more, at most: beyond that something else is wrong than single charges.
const MOST_SUSPECTS: i64 = 100_000;
/// How long a draft may have waited before an item was put on it.
const OLDEST_DRAFT: TimeDelta = TimeDelta::days(35);

/// Lists the books and compares. What the ledger had at `looked_at` was at Stripe before the listing began.
/// `last_written`: only after a restore: when the ledger was last written as far as it knows, if it ever was. Returns the
/// items that are no account's as far as our tables know, and whose accounts are not to be charged for that.
#[tracing::instrument(name = "reconcile.stripe", skip_all)]
pub(super) async fn compare(
    context: &Context,
    lease: &mut PgConnection,
    looked_at: DateTime<Utc>,
    last_written: Option<Option<DateTime<Utc>>>,
) -> Result<Strays, Error> {
    let scope = &context.begun.scope;
    let first_start = scope.first_start(looked_at);
    let from = match (&scope.accounts, last_written) {
        (Some(_), _) | (None, Some(None)) => None,
        (None, None) => Some(first_start),
        (None, Some(Some(last))) => Some(first_start.min(last)),
    };
    // Whoever is withheld stays so as long as the item is listed.
    let withheld_from = withheld::oldest_item(lease).await?;
    let from = from.map(|from| withheld_from.map_or(from, |oldest| from.min(oldest)));
    stripe_books::clear(lease).await?;
    list(context, lease, from).await?;
    let gone = look_up(context, lease).await?;
    let mut suspects = {
        let mut transaction = db::begin(&context.pool).await?;
        reconciliations::take_time(&mut transaction).await?;
        let found =
            stripe_books::suspects(&mut transaction, scope, first_start, from, looked_at, MOST_SUSPECTS + 1)
                .await?;
        transaction.rollback().await?;
        found
    };
    let are_all = suspects.len() as i64 <= MOST_SUSPECTS;
    suspects.extend(gone);
    suspects.sort_unstable();
    suspects.dedup();
    let mut found = Found { restored: last_written.is_some(), ..Found::default() };
    for charges in suspects.chunks(BATCH) {
        look_at(context, charges, looked_at, &mut found).await?;
    }
    for (adoption, mut difference) in adopt::in_order(found.adoptions) {
        context.go_on()?;
        difference.repaired = adopt::adopt(context, &adoption).await?;
        context.add(difference);
    }
    let mut connection = db::acquire(&context.pool).await?;
    open_charges::set_invoiced_by_books(&mut connection).await?;
    drop(connection);
    waiting(context).await?;
    // It is not to count as one that has compared everything.
    if are_all { Ok(found.strays) } else { Err(Error::TooManyDifferences(MOST_SUSPECTS)) }
}

/// What is left to do once all charges were looked at.
#[derive(Default)]
struct Found {
    /// In the order in which they were found.
    adoptions: Vec<(Adoption, Difference)>,
    /// Whether the database may have lost what it knew.
    restored: bool,
    strays: Strays,
}

impl Found {
    /// All of them are adopted in their order; `None`: the item does not say whose it is.
    fn adopt(&mut self, context: &Context, adoption: Option<Adoption>, difference: Difference) {
        match adoption {
            Some(adoption) => self.adoptions.push((adoption, difference)),
            None => context.add(difference),
        }
    }
}

/// Lists items and invoices into our tables.
async fn list(context: &Context, db: &mut PgConnection, from: Option<DateTime<Utc>>) -> Result<(), Error> {
    let customers: Vec<Option<String>> = match &context.begun.scope.accounts {
        None => vec![None],
        Some(accounts) => stripe_books::customers(db, accounts).await?.into_iter().map(Some).collect(),
    };
    for customer in customers {
        let created_from = from.map(|from| from - CLOCK_MARGIN);
        let mut listing = Listing { customer: customer.clone(), created_from, after: None };
        loop {
            let Page { entries, next } = ask(context, || context.books.items(&listing)).await?;
            let new = stripe_books::insert_items(db, &entries).await?;
            context.count(|findings| findings.items += i64::try_from(new).unwrap_or(i64::MAX));
            let Some(next) = next else { break };
            listing.after = Some(next);
        }
        let created_from = created_from.map(|from| from - OLDEST_DRAFT);
        let mut listing = Listing { customer, created_from, after: None };
        loop {
            let Page { entries, next } = ask(context, || context.books.invoices(&listing)).await?;
            stripe_books::insert_invoices(db, &entries).await?;
            let Some(next) = next else { break };
            listing.after = Some(next);
        }
    }
    Ok(())
}

/// Adds what the listing does not reach back to: items that are not known to be on a final invoice, however old, and the
/// invoices that they are on. Returns the charges whose items are not there.
async fn look_up(context: &Context, db: &mut PgConnection) -> Result<Vec<Uuid>, Error> {
    let mut gone = Vec::new();
    for Unlisted { charge_id, item_id } in
        open_charges::unlisted(db, &context.begun.scope, MOST_LOOK_UPS).await?
    {
        match ask(context, || context.books.item(&item_id)).await? {
            Some(item) => drop(stripe_books::insert_items(db, &[item]).await?),
            None => gone.push(charge_id),
        }
    }
    let mut after = String::new();
    loop {
        let page = open_charges::unlisted_invoices(db, &after, BATCH as i64).await?;
        let Some(last) = page.last() else { return Ok(gone) };
        after.clone_from(last);
        for invoice_id in &page {
            if let Some(invoice) = ask(context, || context.books.invoice(invoice_id)).await? {
                stripe_books::insert_invoices(db, &[invoice]).await?;
            }
        }
    }
}

/// Looks at charges once more: the ledger first, then their items at Stripe, then the ledger again.
async fn look_at(
    context: &Context,
    charges: &[Uuid],
    now: DateTime<Utc>,
    found: &mut Found,
) -> Result<(), Error> {
    let before = attempts(context, charges).await?;
    for charge_id in charges {
        let rows = before.get(charge_id).map(Vec::as_slice).unwrap_or_default();
        let ids = {
            let mut connection = db::acquire(&context.pool).await?;
            stripe_books::items_of(&mut connection, *charge_id).await?
        };
        if books::is_in_flight(rows, now) {
            continue;
        }
        let mut items = Vec::new();
        for id in &ids {
            items.extend(ask(context, || context.books.item(id)).await?);
        }
        let rows = attempts(context, &[*charge_id]).await?.remove(charge_id).unwrap_or_default();
        let home = {
            let eco_id = rows.first().map(|row| row.eco_id.as_str());
            let says = || items.iter().find_map(|item| item.metadata.get("eco_id"));
            let eco_id = eco_id.or_else(|| says().map(String::as_str)).unwrap_or_default();
            let customers: Vec<&str> = items.iter().map(|item| item.customer.as_str()).collect();
            let mut connection = db::acquire(&context.pool).await?;
            // Only a restore loses a customer; whoever is withheld may still have to be given it.
            let may_lack =
                found.restored || withheld::among(&mut connection, &[eco_id]).await?.contains(eco_id);
            let customers = if may_lack { &customers[..] } else { &[] };
            stripe_books::home(&mut connection, eco_id, customers).await?
        };
        let is_waived = is_waived(context, &rows, &items).await?;
        for (difference, repair) in books::compare(*charge_id, &rows, &items, home.as_ref(), now) {
            let item = items.iter().find(|item| item.item_id == difference.item_id);
            if is_asked_of_nobody(context, difference.kind, item).await? {
                continue;
            }
            if let Some(item) = item.filter(|_| difference.kind.may_lack_customer()) {
                found.strays.add(&difference.eco_id, home.as_ref(), item);
            }
            // Which of the two is to be paid is not known here.
            let is_kept = is_waived && difference.kind == Kind::ItemDuplicated;
            let repair = repair.filter(|_| !is_kept);
            if is_in_scope(context, &rows, &items) {
                report(context, &rows, (difference, repair), found).await?;
            }
        }
    }
    Ok(())
}

async fn attempts(context: &Context, charges: &[Uuid]) -> Result<HashMap<Uuid, Vec<LedgerRow>>, Error> {
    let mut connection = db::acquire(&context.pool).await?;
    Ok(stripe_books::attempts(&mut connection, charges).await?)
}

/// Whether an item that the ledger has is on a void invoice, where there are others.
async fn is_waived(context: &Context, rows: &[LedgerRow], items: &[BookItem]) -> Result<bool, Error> {
    let ours = |item: &&BookItem| rows.iter().any(|row| row.item_id.as_ref() == Some(&item.item_id));
    for item in items.iter().filter(ours).filter(|_| items.len() > 1) {
        if is_on_void_invoice(context, item).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn is_on_void_invoice(context: &Context, item: &BookItem) -> Result<bool, Error> {
    let Some(id) = &item.invoice_id else { return Ok(false) };
    let invoice = ask(context, || context.books.invoice(id)).await?;
    Ok(invoice.is_some_and(|invoice| invoice.status == InvoiceStatus::Void))
}

/// Whether an item that is one too many is on a void invoice: there is nothing to take back.
async fn is_asked_of_nobody(context: &Context, kind: Kind, item: Option<&BookItem>) -> Result<bool, Error> {
    let is_too_many = matches!(kind, Kind::ItemDuplicated | Kind::ItemStray | Kind::ItemOfNoAccount);
    match item.filter(|_| is_too_many) {
        Some(item) => is_on_void_invoice(context, item).await,
        None => Ok(false),
    }
}

/// An item that does not say which period it is of is always told.
fn is_in_scope(context: &Context, rows: &[LedgerRow], items: &[BookItem]) -> bool {
    let period = rows.first().map(|row| row.period);
    let period = period.or_else(|| items.first().and_then(|item| books::period_of(&item.metadata)));
    period.is_none_or(|period| context.begun.scope.has_period(period.start, period.end))
}

async fn report(
    context: &Context,
    rows: &[LedgerRow],
    (mut difference, repair): Finding,
    found: &mut Found,
) -> Result<(), Error> {
    if let Some(repair) = repair.filter(|_| context.begun.repair) {
        match repair {
            Repair::Adopt(item) => {
                found.adopt(context, Adoption::of(item), difference);
                return Ok(());
            }
            Repair::Second(item) => {
                found.adopt(context, Adoption::second(item, rows), difference);
                return Ok(());
            }
            Repair::Succeed { attempt, item_id } => {
                if let (Some(row), Ok(charge_id)) = (of(rows, attempt), difference.charge_id.parse()) {
                    difference.repaired = repair::succeed(context, charge_id, row, &item_id).await?;
                }
            }
            Repair::Fail { attempt } => {
                if let (Some(row), Ok(charge_id)) = (of(rows, attempt), difference.charge_id.parse())
                    // With the key of another account of Stripe's everything would be gone.
                    && ask(context, || context.books.has_had_customer(&row.customer)).await?
                {
                    difference.repaired = repair::fail(context, charge_id, row).await?;
                }
            }
            Repair::Accept { attempt, item } => {
                if let (Some(row), Ok(charge_id)) = (of(rows, attempt), difference.charge_id.parse()) {
                    difference.repaired = repair::accept(context, charge_id, row, &item).await?;
                }
            }
            Repair::Delete { item_id } => {
                context.pace.wait().await;
                match context.payments.delete_item(&item_id).await {
                    Ok(()) => difference.repaired = true,
                    Err(doubt) => tracing::warn!(item_id, reason = doubt.message, "an item was not deleted"),
                }
            }
        }
    }
    context.add(difference);
    Ok(())
}

fn of(rows: &[LedgerRow], attempt: i32) -> Option<&LedgerRow> {
    rows.iter().find(|row| row.attempt == attempt)
}

/// Asks until there is an answer, within bounds.
pub(super) async fn ask<'a, T>(
    context: &'a Context,
    call: impl Fn() -> BoxFuture<'a, Result<T, Doubt>>,
) -> Result<T, Error> {
    let mut tries = 0;
    loop {
        context.go_on()?;
        context.pace.wait().await;
        let doubt = match call().await {
            Ok(answer) => return Ok(answer),
            Err(doubt) => doubt,
        };
        if let Some(time) = doubt.retry_after {
            context.pace.pause_all(time);
        }
        tries += 1;
        let too_long = doubt.retry_after.is_some_and(|time| time > LONGEST_PAUSE);
        if tries >= MAX_TRIES || too_long || doubt.advice != Advice::Again {
            return Err(Error::BooksUnread(doubt.message));
        }
        let pause = backoff(tries, &mut rand::rng());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.shutdown.cancelled() => {}
        }
    }
}

/// Names the items that should be on a finalised invoice by now.
async fn waiting(context: &Context) -> Result<(), Error> {
    let mut after: Option<String> = None;
    loop {
        context.go_on()?;
        let items = {
            let mut connection = db::acquire(&context.pool).await?;
            stripe_books::waiting(&mut connection, &context.begun.scope, after.as_deref(), BATCH as i64)
                .await?
        };
        let is_last = items.len() < BATCH;
        after = items.last().map(|item| item.item_id.clone());
        for item in items {
            context.add(waits(item));
        }
        if is_last {
            return Ok(());
        }
    }
}

fn waits(item: Waiting) -> Difference {
    let place = match (&item.invoice_id, item.invoice_status.as_deref()) {
        (None, _) => "has waited for an invoice".to_owned(),
        (Some(invoice), Some("draft")) => format!("is on invoice {invoice}, which is still a draft"),
        (Some(invoice), Some(_)) => format!("is on invoice {invoice}, which is void"),
        (Some(invoice), None) => format!("is on invoice {invoice}, which Stripe does not list"),
    };
    Difference {
        message: format!(
            "Item {} over {} {place}; it was made on {}.",
            item.item_id,
            text(item.amount, &item.currency),
            item.created.date_naive()
        ),
        eco_id: item.eco_id,
        kind: Kind::ItemOnNoFinalisedInvoice,
        amount: item.amount,
        currency: item.currency,
        period_start: Some(item.period_start),
        charge_id: item.charge_id.to_string(),
        item_id: item.item_id,
        repaired: false,
    }
}
