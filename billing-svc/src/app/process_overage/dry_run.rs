//! What a run would charge, read only: from the counters, the queue included.

use std::collections::BTreeSet;

use nexus_core::money::{Currency, Micros, OutOfRange};
use sqlx::PgPool;

use crate::{
    domain::{
        overage::{Facts, Price},
        run::{AccountError, AccountResult, Figures},
    },
    error::Error,
    store::{changes, facts, records},
};

/// Planned charges that are told.
const MAX_PLANNED: usize = 1_000;
const BATCH: usize = 1_000;

/// What a run would do.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Its figures.
    pub figures: Figures,
    /// The first of its charges.
    pub charges: Vec<PlannedCharge>,
}

/// A charge that a run would make, with what it follows from.
#[derive(Debug, Clone)]
pub struct PlannedCharge {
    /// Counts, plan, price, ledger.
    pub facts: Facts,
    /// Overage to date.
    pub overage_units: i64,
    /// Due now.
    pub due: Micros,
    /// The charge.
    pub amount: Micros,
}

/// Looks at the accounts a run would look at, in one read-only snapshot.
pub async fn dry_run(pool: &PgPool, accounts: Option<&[String]>) -> Result<Plan, Error> {
    let mut snapshot = pool.begin_with("begin isolation level repeatable read read only").await?;
    let mut periods = BTreeSet::new();
    for candidate in records::candidates(&mut snapshot, accounts).await? {
        if candidate.owes()? {
            periods.insert(candidate.key);
        }
    }
    let queued = changes::peek(&mut snapshot).await?;
    periods.extend(queued.into_iter().filter(|(eco_id, _)| accounts.is_none_or(|a| a.contains(eco_id))));
    let periods: Vec<_> = periods.into_iter().collect();
    let mut planner = Planner::default();
    for batch in periods.chunks(BATCH) {
        for facts in facts::read(&mut snapshot, batch).await? {
            planner.look_at(facts)?;
        }
    }
    snapshot.rollback().await?;
    Ok(planner.finish())
}

#[derive(Default)]
struct Planner {
    plan: Plan,
    /// The account being looked at; its periods follow each other.
    account: Option<(String, AccountResult)>,
}

impl Planner {
    fn look_at(&mut self, facts: Facts) -> Result<(), OutOfRange> {
        let Some(difference) = facts.difference()? else {
            if facts.is_unpriced()? && facts.parked_reason.is_none() {
                let message = format!("The plan of {} has no price in {}", facts.eco_id, facts.currency);
                self.account(&facts.eco_id).error =
                    Some(error(&facts.eco_id, records::NO_PRICE_IN_CURRENCY, message));
            }
            return Ok(());
        };
        let waits = facts.parked_reason.as_deref() == Some(records::NO_STRIPE_CUSTOMER);
        match (&facts.stripe_customer_id, &facts.parked_reason) {
            (None, None) => {
                let message = format!("No Stripe customer ID found for {}", facts.eco_id);
                self.account(&facts.eco_id).error =
                    Some(error(&facts.eco_id, records::NO_STRIPE_CUSTOMER, message));
            }
            (Some(_), reason) if reason.is_none() || waits => {
                let account = self.account(&facts.eco_id);
                account.charged = true;
                if facts.currency == Currency::USD {
                    account.total.0 = account.total.0.checked_add(difference.amount.0).ok_or(OutOfRange)?;
                }
                if self.plan.charges.len() < MAX_PLANNED {
                    let due = facts.due()?;
                    let (overage_units, amount) = (difference.units_to, difference.amount);
                    self.plan.charges.push(PlannedCharge { facts, overage_units, due, amount });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn account(&mut self, eco_id: &str) -> &mut AccountResult {
        if self.account.as_ref().is_none_or(|(current, _)| current != eco_id) {
            self.close_account();
        }
        &mut self.account.get_or_insert_with(|| (eco_id.to_owned(), AccountResult::default())).1
    }

    fn close_account(&mut self) {
        if let Some((_, result)) = self.account.take() {
            self.plan.figures.add(result);
        }
    }

    fn finish(mut self) -> Plan {
        self.close_account();
        self.plan
    }
}

impl PlannedCharge {
    /// Price the charge follows from: micros, and the units they buy.
    pub fn price(&self) -> (i64, i64) {
        match self.facts.price {
            Price::Is(price) => (price.micros, price.per_units),
            Price::NoneInCurrency => (0, 1),
        }
    }
}

fn error(eco_id: &str, reason: &str, message: String) -> AccountError {
    AccountError { eco_id: eco_id.to_owned(), reason: reason.to_owned(), message }
}
