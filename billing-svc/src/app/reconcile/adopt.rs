//! Items that are at Stripe and not in the ledger are taken into it: charges that it has lost, and second items of charges
//! that are on an invoice.

use nexus_core::{money::Micros, period::Period};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{repair::begin, work::Context};
use crate::{
    app::refresh,
    domain::{
        basis::Basis,
        books::{BookItem, LedgerRow, amount_of, charge_of, period_of},
        charge::{Intent, InvoiceItem, charge_id},
        overage::{Difference as Charged, Facts, Ledger},
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
    /// Whether the ledger has the charge without it, or will.
    is_second: bool,
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
        Some(Self::new(item, named, eco_id, period, sequence.unwrap_or_default(), calls))
    }

    /// A second item of a charge of which the ledger has these attempts, or which is adopted before it.
    pub(super) fn second(item: BookItem, rows: &[LedgerRow]) -> Option<Self> {
        let (eco_id, period) = match rows.first() {
            Some(row) => (row.eco_id.clone(), row.period),
            None => (item.metadata.get("eco_id")?.clone(), period_of(&item.metadata)?),
        };
        let named = charge_of(&item.metadata)?;
        Some(Self { is_second: true, ..Self::new(item, named, eco_id, period, 0, 0) })
    }

    fn new(item: BookItem, named: Uuid, eco_id: String, period: Period, sequence: i32, calls: i64) -> Self {
        let intent = Intent {
            charge_id: named,
            attempt: 1,
            eco_id,
            period,
            sequence,
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
        };
        Self { item, intent, is_second: false }
    }
}

/// In the order in which the charges were made: each begins at the units where the one before it ended. Those
/// without a number come last, and after them the second items: what took them back is in the ledger by then.
pub(super) fn in_order(mut adoptions: Vec<(Adoption, Difference)>) -> Vec<(Adoption, Difference)> {
    adoptions.sort_by(|(a, _), (b, _)| {
        let key =
            |a: &Adoption| (a.is_second, a.intent.period.start, a.intent.sequence == 0, a.intent.sequence);
        (&a.intent.eco_id, key(a)).cmp(&(&b.intent.eco_id, key(b)))
    });
    adoptions
}

/// Takes the item into the ledger; false: the account is not there, or another charge has its place.
pub(super) async fn adopt(context: &Context, adoption: &Adoption) -> Result<bool, Error> {
    let key = adoption.intent.period_key();
    let mut transaction = begin(context).await?;
    if !records::lock(&mut transaction, &key).await? {
        lease::refresh(&mut transaction).await?;
        refresh::refresh(&mut transaction, std::slice::from_ref(&key)).await?;
        records::lock(&mut transaction, &key).await?;
    }
    let Some(facts) = facts::read(&mut transaction, std::slice::from_ref(&key)).await?.pop() else {
        return Ok(false);
    };
    let item = &adoption.item;
    if facts.currency.as_str() != item.currency {
        return Ok(false);
    }
    let done = match adoption.is_second {
        true => adopt_second(&mut transaction, adoption, facts).await?,
        false => adopt_lost(&mut transaction, adoption, &facts).await?,
    };
    if !done {
        return Ok(false);
    }
    records::set_billed(&mut transaction, &key).await?;
    records::reopen(&mut transaction, &key).await?;
    transaction.commit().await?;
    tracing::warn!(eco_id = key.eco_id, charge_id = %adoption.intent.charge_id, item_id = item.item_id, "an item was taken into the ledger");
    Ok(true)
}

async fn adopt_lost(db: &mut PgConnection, adoption: &Adoption, facts: &Facts) -> Result<bool, Error> {
    let units = facts.ledger.units;
    let mut intent = adoption.intent.clone();
    if intent.sequence == 0 {
        intent.sequence = facts.ledger.last_sequence + 1;
    }
    intent.difference.units_from = units;
    intent.difference.units_to += units;
    let (item_id, created) = (&adoption.item.item_id, adoption.item.created);
    if ledger_repairs::adopt(db, &intent, item_id, created).await? {
        return Ok(true);
    }
    // Its number may have gone to another charge since it was lost. One that the ledger has is refused again.
    intent.sequence = facts.ledger.last_sequence + 1;
    Ok(ledger_repairs::adopt(db, &intent, item_id, created).await?)
}

/// The next run takes it back: by a correction of its own where it is all that is too much, else with whatever else the
/// period owes then.
async fn adopt_second(db: &mut PgConnection, adoption: &Adoption, facts: Facts) -> Result<bool, Error> {
    let Adoption { item, intent, .. } = adoption;
    let known = charges::items(db, intent.charge_id).await?;
    // The charge itself was not taken in, or a recheck has come before us.
    if known.is_empty() || known.contains(&item.item_id) {
        return Ok(false);
    }
    let units = facts.ledger.units;
    let amount = intent.difference.amount;
    let second = Intent {
        attempt: charges::last_attempt(db, intent.charge_id).await? + 1,
        sequence: facts.ledger.last_sequence + 1,
        difference: Charged { amount, units_from: units, units_to: units },
        basis: Some(Basis::Duplicate { item_micros: amount.0 }),
        ..intent.clone()
    };
    if !ledger_repairs::adopt(db, &second, &item.item_id, item.created).await? {
        return Ok(false);
    }
    let ledger = Ledger {
        last_sequence: second.sequence,
        billed: Micros(facts.ledger.billed.0.saturating_add(amount.0)),
        ..facts.ledger
    };
    let facts = Facts { ledger, ..facts };
    let too_much = facts.difference().ok().flatten().map(|difference| difference.amount.0);
    if !facts.ledger.pending && too_much == Some(-amount.0) {
        charges::insert(db, &Intent::correction(&facts, &second), None).await?;
    } else {
        records::unpark_refused(db, &second.period_key()).await?;
    }
    Ok(true)
}
