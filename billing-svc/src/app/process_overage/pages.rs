//! Who has something to do, page by page, in the order of the accounts' ids: an account is looked at once, and one
//! that begins to owe behind the page that is read is the next run's.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use nexus_kit::db;
use sqlx::{PgConnection, PgPool};

use crate::{
    domain::period::PeriodKey,
    error::Error,
    store::{changes, rechecks, records},
};

/// Rows of a page.
const PAGE: usize = 1_000;
/// Periods of one account that are looked at.
const MAX_PERIODS: i64 = 1_000;

/// What an account has to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    /// Its periods with something to do, in order.
    pub(super) periods: Vec<PeriodKey>,
    /// Whether it has charges to recheck.
    pub(super) recheck: bool,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// A run: rechecks, too. The queue is empty.
    Run,
    /// A dry run: what the queue has, too, for it empties nothing.
    DryRun,
}

/// A place among the accounts.
pub(super) struct Pages<'a> {
    reader: Reader,
    accounts: Option<&'a [String]>,
    after: String,
    ended: bool,
}

impl<'a> Pages<'a> {
    /// From the first account; `accounts`: of these alone.
    pub(super) fn new(reader: Reader, accounts: Option<&'a [String]>) -> Self {
        Self { reader, accounts, after: String::new(), ended: false }
    }

    /// The next accounts, each whole; empty: there are no more.
    pub(super) async fn next(&mut self, db: &mut PgConnection) -> Result<BTreeMap<String, Todo>, Error> {
        let mut page = BTreeMap::new();
        while page.is_empty() && !self.ended {
            page = self.read(db).await?;
        }
        Ok(page)
    }

    async fn read(&mut self, db: &mut PgConnection) -> Result<BTreeMap<String, Todo>, Error> {
        let (accounts, after, limit) = (self.accounts, self.after.as_str(), PAGE as i64);
        let candidates = records::candidates(db, accounts, after, limit).await?;
        let (mut queued, mut rechecks) = (Vec::new(), Vec::new());
        match self.reader {
            Reader::Run => rechecks = rechecks::accounts(db, accounts, after, limit).await?,
            Reader::DryRun => queued = changes::peek(db, accounts, after, limit).await?,
        }
        let ends = [
            end_of(candidates.iter().map(|candidate| candidate.key.eco_id.as_str())),
            end_of(queued.iter().map(|key| key.eco_id.as_str())),
            end_of(rechecks.iter().map(String::as_str)),
        ];
        let end = ends.into_iter().flatten().min();
        let within = |eco_id: &str| end.as_deref().is_none_or(|end| eco_id <= end);
        let mut page: BTreeMap<String, Todo> = BTreeMap::new();
        for candidate in &candidates {
            if within(&candidate.key.eco_id) && candidate.owes()? {
                add(&mut page, candidate.key.clone());
            }
        }
        for key in queued.into_iter().filter(|key| within(&key.eco_id)) {
            add(&mut page, key);
        }
        for eco_id in rechecks.into_iter().filter(|eco_id| within(eco_id)) {
            page.entry(eco_id).or_default().recheck = true;
        }
        self.ended = end.is_none();
        self.after = end.unwrap_or_default();
        Ok(page)
    }
}

/// Periods of an account with something to charge, of those that began before a time.
pub(in crate::app) async fn owing(
    pool: &PgPool,
    eco_id: &str,
    before: Option<DateTime<Utc>>,
) -> Result<Vec<PeriodKey>, Error> {
    let only = [eco_id.to_owned()];
    let mut connection = db::acquire(pool).await?;
    let mut owing = Vec::new();
    for candidate in records::candidates(&mut connection, Some(&only), "", MAX_PERIODS).await? {
        if before.is_none_or(|before| candidate.key.start < before) && candidate.owes()? {
            owing.push(candidate.key);
        }
    }
    Ok(owing)
}

fn add(page: &mut BTreeMap<String, Todo>, key: PeriodKey) {
    let periods = &mut page.entry(key.eco_id.clone()).or_default().periods;
    if let Err(place) = periods.binary_search(&key) {
        periods.insert(place, key);
    }
}

/// The last account of which all rows are there for certain; `None`: all accounts are.
fn end_of<'i>(rows: impl DoubleEndedIterator<Item = &'i str> + ExactSizeIterator) -> Option<String> {
    if rows.len() < PAGE {
        return None;
    }
    let mut backwards = rows.rev();
    let last = backwards.next()?;
    // The last one may go on beyond the page. One that fills a page alone is taken as it is.
    Some(backwards.find(|eco_id| *eco_id != last).unwrap_or(last).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_an_account_that_may_go_on() {
        let short = ["eco_a", "eco_b"];
        assert_eq!(end_of(short.iter().copied()), None);
        let mut full = vec!["eco_a"; PAGE - 2];
        full.extend(["eco_b", "eco_b"]);
        assert_eq!(end_of(full.iter().copied()).as_deref(), Some("eco_a"));
        assert_eq!(end_of(vec!["eco_a"; PAGE].into_iter()).as_deref(), Some("eco_a"));
    }
}
