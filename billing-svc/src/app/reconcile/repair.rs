//! What can be repaired without a person: what is computed is computed anew, what Stripe is known to have goes into
//! the ledger, what it has no more leaves it. What is due then and not at Stripe a run charges, or credits; here money
//! moves only by taking away an item that nobody was invoiced for.

use nexus_kit::db;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    app::refresh,
    domain::{
        books::{BookItem, LedgerRow, amount_of, charge_of, period_of},
        charge::{Intent, InvoiceItem, charge_id},
        overage::Difference as Charged,
        period::PeriodKey,
        reconciliation::Difference,
    },
    error::Error,
    store::{charges, facts, lease, ledger_repairs, records},
};

/// Numbers that are tried for a charge.
const MAX_SEQUENCE: i32 = 10_000;

/// An item that says which charge of whom it is, and that the ledger does not have.
#[derive(Debug, Clone)]
pub(super) struct Adoption {
    item: BookItem,
    intent: Intent,
}

impl Adoption {
    /// `None`: the item does not say it.
    pub(super) fn of(item: BookItem) -> Option<Self> {
        let eco_id = item.metadata.get("eco_id")?.clone();
        let period = period_of(&item.metadata)?;
        let named = charge_of(&item.metadata)?;
        let calls = item.metadata.get("overage_calls").and_then(|text| text.parse().ok()).unwrap_or_default();
        // A charge is named by its number; another name gets the next free one.
        let sequence = (1..=MAX_SEQUENCE).find(|n| charge_id(&eco_id, period, *n) == named);
        let intent = Intent {
            charge_id: named,
            attempt: 1,
            period,
            sequence: sequence.unwrap_or_default(),
            difference: Charged { amount: amount_of(&item), units_from: 0, units_to: calls },
            item: InvoiceItem {
                customer: item.customer.clone(),
                subscription: item.subscription.clone(),
                invoice: None,
                amount_minor: item.amount_minor,
                currency: item.currency.clone(),
                description: item.description.clone(),
                metadata: item.metadata.clone(),
            },
            // What it followed from is not to be told from the item.
            basis: None,
            eco_id,
        };
        Some(Self { item, intent })
    }
}

/// In the order in which the charges were made: each begins at the units where the one before it ended. Those
/// without a number come last.
pub(super) fn in_order(mut adoptions: Vec<(Adoption, Difference)>) -> Vec<(Adoption, Difference)> {
    adoptions.sort_by(|(a, _), (b, _)| {
        let key = |a: &Adoption| (a.intent.period.start, a.intent.sequence == 0, a.intent.sequence);
        (&a.intent.eco_id, key(a)).cmp(&(&b.intent.eco_id, key(b)))
    });
    adoptions
}

/// Takes the item into the ledger; false: the account is not there, or another charge has its place.
pub(super) async fn adopt(pool: &PgPool, adoption: &Adoption) -> Result<bool, Error> {
    let key = adoption.intent.period_key();
    let mut transaction = db::begin(pool).await?;
    if !records::lock(&mut transaction, &key).await? {
        lease::refresh(&mut transaction).await?;
        refresh::refresh(&mut transaction, std::slice::from_ref(&key)).await?;
        records::lock(&mut transaction, &key).await?;
    }
    let Some(facts) = facts::read(&mut transaction, std::slice::from_ref(&key)).await?.pop() else {
        return Ok(false);
    };
    let units = facts.ledger.units;
    let mut intent = adoption.intent.clone();
    if intent.sequence == 0 {
        intent.sequence = facts.ledger.last_sequence + 1;
    }
    intent.difference.units_from = units;
    intent.difference.units_to += units;
    let item = &adoption.item;
    if !charges::adopt(&mut transaction, &intent, &item.item_id, item.created).await? {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    tracing::warn!(eco_id = key.eco_id, charge_id = %intent.charge_id, item_id = item.item_id, "an item was taken into the ledger");
    Ok(true)
}

/// The attempt has the item after all; false: another one is live by now.
pub(super) async fn succeed(
    pool: &PgPool,
    charge_id: Uuid,
    row: &LedgerRow,
    item_id: &str,
) -> Result<bool, Error> {
    let key = PeriodKey { eco_id: row.eco_id.clone(), start: row.period.start };
    let mut transaction = db::begin(pool).await?;
    records::lock(&mut transaction, &key).await?;
    if !charges::revive(&mut transaction, charge_id, row.attempt, item_id).await? {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::park(&mut transaction, &key, None, None).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    Ok(true)
}

/// The attempt came to nothing, for its item is not there any more; false: it is another's by now.
pub(super) async fn fail(pool: &PgPool, charge_id: Uuid, row: &LedgerRow) -> Result<bool, Error> {
    let key = PeriodKey { eco_id: row.eco_id.clone(), start: row.period.start };
    let mut transaction = db::begin(pool).await?;
    records::lock(&mut transaction, &key).await?;
    if !ledger_repairs::fail(&mut transaction, charge_id, row.attempt, row.item_id.as_deref()).await? {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    tracing::warn!(eco_id = key.eco_id, %charge_id, item_id = row.item_id, "a charge is not at Stripe any more, and is made anew");
    Ok(true)
}

/// The charge is from now on what Stripe has of it; false: the attempt is another's by now.
pub(super) async fn accept(
    pool: &PgPool,
    charge_id: Uuid,
    row: &LedgerRow,
    item: &BookItem,
) -> Result<bool, Error> {
    let key = PeriodKey { eco_id: row.eco_id.clone(), start: row.period.start };
    let mut transaction = db::begin(pool).await?;
    records::lock(&mut transaction, &key).await?;
    let item_id = row.item_id.as_deref();
    let Some(mut intent) =
        ledger_repairs::set_aside(&mut transaction, charge_id, row.attempt, item_id).await?
    else {
        return Ok(false);
    };
    intent.attempt = charges::last_attempt(&mut transaction, charge_id).await? + 1;
    intent.difference = intent.difference.over(amount_of(item));
    intent.item.customer.clone_from(&item.customer);
    intent.item.amount_minor = item.amount_minor;
    intent.item.description.clone_from(&item.description);
    intent.item.metadata.clone_from(&item.metadata);
    if !charges::adopt(&mut transaction, &intent, &item.item_id, item.created).await? {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    tracing::warn!(eco_id = key.eco_id, %charge_id, item_id = item.item_id, "a charge was taken over as Stripe has it");
    Ok(true)
}

/// Computes a period's summary anew, the sum of its charges included.
pub(super) async fn recompute(pool: &PgPool, key: &PeriodKey) -> Result<(), Error> {
    let mut transaction = db::begin(pool).await?;
    // Who computed it before has committed, and who computes it next sees this.
    lease::refresh(&mut transaction).await?;
    refresh::refresh(&mut transaction, std::slice::from_ref(key)).await?;
    records::lock(&mut transaction, key).await?;
    records::set_billed(&mut transaction, key).await?;
    Ok(transaction.commit().await?)
}
