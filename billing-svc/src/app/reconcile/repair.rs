//! What can be repaired without a person: what is computed is computed anew, what Stripe is known to have goes into
//! the ledger, what it has no more leaves it. What is due then and not at Stripe a run charges, or credits; here money
//! moves only by taking away an item that nobody was invoiced for.

use nexus_kit::db;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::work::Context;
use crate::{
    app::refresh,
    domain::{
        books::{BookItem, LedgerRow, amount_of},
        period::PeriodKey,
    },
    error::Error,
    store::{charges, lease, ledger_repairs, records},
};

/// A transaction on behalf of whoever asked for the repairs.
pub(super) async fn begin(context: &Context) -> sqlx::Result<Transaction<'static, Postgres>> {
    let mut transaction = db::begin(&context.pool).await?;
    db::set_actor(&mut transaction, &context.actor).await?;
    Ok(transaction)
}

/// The attempt has the item after all; false: another one is live by now.
pub(super) async fn succeed(
    context: &Context,
    charge_id: Uuid,
    row: &LedgerRow,
    item_id: &str,
) -> Result<bool, Error> {
    let key = PeriodKey { eco_id: row.eco_id.clone(), start: row.period.start };
    let mut transaction = begin(context).await?;
    records::lock(&mut transaction, &key).await?;
    if !ledger_repairs::revive(&mut transaction, charge_id, row.attempt, item_id).await? {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::park(&mut transaction, &key, None, None).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    Ok(true)
}

/// The attempt came to nothing, for its item is not there any more; false: it is another's by now.
pub(super) async fn fail(context: &Context, charge_id: Uuid, row: &LedgerRow) -> Result<bool, Error> {
    let key = PeriodKey { eco_id: row.eco_id.clone(), start: row.period.start };
    let mut transaction = begin(context).await?;
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
    context: &Context,
    charge_id: Uuid,
    row: &LedgerRow,
    item: &BookItem,
) -> Result<bool, Error> {
    let key = PeriodKey { eco_id: row.eco_id.clone(), start: row.period.start };
    let mut transaction = begin(context).await?;
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
    if !ledger_repairs::adopt(&mut transaction, &intent, &item.item_id, item.created).await? {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    tracing::warn!(eco_id = key.eco_id, %charge_id, item_id = item.item_id, "a charge was taken over as Stripe has it");
    Ok(true)
}

/// Computes a period's summary anew, the sum of its charges included.
pub(super) async fn recompute(context: &Context, key: &PeriodKey) -> Result<(), Error> {
    let mut transaction = begin(context).await?;
    // Who computed it before has committed, and who computes it next sees this.
    lease::refresh(&mut transaction).await?;
    refresh::refresh(&mut transaction, std::slice::from_ref(key)).await?;
    records::lock(&mut transaction, key).await?;
    records::set_billed(&mut transaction, key).await?;
    Ok(transaction.commit().await?)
}
