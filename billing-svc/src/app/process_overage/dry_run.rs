//! What a run would charge, read only: from the counters, the queue included.

use nexus_core::money::{Currency, Micros, OutOfRange};
use nexus_kit::db;
use sqlx::{PgConnection, PgPool};

use super::{
    charge::{untold_error, withheld_error},
    pages::{Pages, Reader},
};
use crate::{
    domain::{
        overage::{Difference, Facts, Next, Price},
        run::{AccountError, AccountResult, Figures, MAX_ERRORS, Totals},
    },
    error::Error,
    store::{facts, withheld},
};

/// Planned charges that are told.
const MAX_PLANNED: usize = 1_000;

/// What a run would do.
#[derive(Debug, Clone, Default)]
pub struct DryRun {
    /// Its figures.
    pub figures: Figures,
    /// The first of its charges.
    pub charges: Vec<PlannedCharge>,
    /// All of them.
    pub charges_count: i32,
    /// The first of its errors.
    pub errors: Vec<AccountError>,
    /// The sums of all charges.
    pub totals: Totals,
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
pub async fn dry_run(pool: &PgPool, accounts: Option<&[String]>) -> Result<DryRun, Error> {
    let mut snapshot = db::snapshot(pool).await?;
    let mut pages = Pages::new(Reader::DryRun, accounts);
    let mut planner = Planner::default();
    loop {
        let page = pages.next(&mut snapshot).await?;
        if page.is_empty() {
            break;
        }
        let periods: Vec<_> = page.into_values().flat_map(|todo| todo.periods).collect();
        let eco_ids: Vec<&str> = periods.iter().map(|period| period.eco_id.as_str()).collect();
        let withheld = withheld::among(&mut snapshot, &eco_ids).await?;
        for facts in facts::read(&mut snapshot, &periods).await? {
            let is_withheld = withheld.contains(&facts.eco_id);
            planner.look_at(&mut snapshot, facts, is_withheld).await?;
        }
    }
    snapshot.rollback().await?;
    Ok(planner.finish())
}

#[derive(Default)]
struct Planner {
    planned: DryRun,
    /// The account being looked at; its periods follow each other.
    account: Option<(String, AccountResult)>,
}

impl Planner {
    async fn look_at(&mut self, db: &mut PgConnection, facts: Facts, is_withheld: bool) -> Result<(), Error> {
        match facts.next()? {
            Next::Nothing | Next::Settle => {}
            // As in a run, an account goes no further than its first error.
            _ if self.account(&facts.eco_id).error.is_some() => {}
            Next::Park(reason) => {
                let error = untold_error(db, &facts, &reason).await?;
                self.account(&facts.eco_id).error = error;
            }
            Next::Charge { .. } if is_withheld => {
                self.account(&facts.eco_id).error = Some(withheld_error(&facts.eco_id));
            }
            Next::Charge { difference, .. } => self.charge(facts, difference)?,
        }
        Ok(())
    }

    /// Of what is charged in parts each is one, as the run makes them.
    fn charge(&mut self, mut facts: Facts, mut difference: Difference) -> Result<(), OutOfRange> {
        while facts.is_part(&difference)? {
            self.charge_once(facts.clone(), difference)?;
            facts.ledger.billed.0 += difference.amount.0;
            facts.ledger.units = difference.units_to;
            match facts.difference()? {
                Some(rest) => difference = rest,
                None => return Ok(()),
            }
        }
        self.charge_once(facts, difference)
    }

    fn charge_once(&mut self, facts: Facts, difference: Difference) -> Result<(), OutOfRange> {
        let account = self.account(&facts.eco_id);
        account.charged = true;
        if facts.currency == Currency::USD {
            account.total.0 = account.total.0.checked_add(difference.amount.0).ok_or(OutOfRange)?;
        }
        let total = self.planned.totals.entry(facts.currency.to_string()).or_default();
        total.0 = total.0.checked_add(difference.amount.0).ok_or(OutOfRange)?;
        self.planned.charges_count += 1;
        if self.planned.charges.len() < MAX_PLANNED {
            let due = facts.due()?;
            let (overage_units, amount) = (facts.overage()?.units, difference.amount);
            self.planned.charges.push(PlannedCharge { facts, overage_units, due, amount });
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
            self.planned.figures.add(&result);
            self.planned.figures.accounts = self.planned.figures.processed;
            if let Some(error) = result.error.filter(|_| self.planned.errors.len() < MAX_ERRORS) {
                self.planned.errors.push(error);
            }
        }
    }

    fn finish(mut self) -> DryRun {
        self.close_account();
        self.planned
    }
}

impl PlannedCharge {
    /// Price the charge follows from: micros, and the units they buy.
    pub fn price(&self) -> (i64, i64) {
        match self.facts.overage_terms().price {
            Price::Is(price) => (price.micros, price.per_units),
            Price::NoneInCurrency => (0, 1),
        }
    }
}
