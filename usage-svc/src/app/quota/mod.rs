//! Quota that is decided from memory: this replica as a holder of leased units.
//!
//! A check spends units of a lease that is held, by one compare-and-swap ([`Quota::admit`]). Only where the
//! leases do not suffice is the database asked, one caller of an account at a time and for all that wait
//! (`claim`); and once they run low, ahead of need. What is not spent goes back (`settle`) when nobody
//! asks for it any more, somebody else is short of it, the account or its plan changes, or the server stops
//! (`keeper`).
//!
//! | module | what it does |
//! |---|---|
//! | `account` | what is held and known of an account |
//! | `held` | a lease in memory, and units of it that may come back |
//! | `claim` | asks the database for units |
//! | `settle` | gives back what was not spent, until the database has it |
//! | `lend` | lends units to clients, who admit from them in their own process |
//! | `clients` | these clients: how many there may be, and that they are told to give back |
//! | `metrics` | what is counted |
//! | `refresh` | asks again about what is known, where it may not be true any more |
//! | `keeper` | listens to changes, sweeps what is idle, gives signs of life, settles at the end |

mod account;
mod claim;
mod clients;
mod held;
mod keeper;
mod lend;
mod metrics;
mod refresh;
mod settle;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use dashmap::DashMap;
use nexus_core::{id::EcoId, period::Period};
use nexus_kit::{db, turn::Turns};
use prometheus_client::registry::Registry;
use sqlx::PgPool;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::{
    account::{Account, Slot, Step, View},
    claim::Ask,
    clients::Clients,
    metrics::QuotaMetrics,
    settle::Returns,
};
use crate::{
    app::{feed::Feed, known::Known, outage::Outage},
    clock::{BootTime, LaggingClock},
    domain::quota::{Standing, Terms},
    error::Error,
};

pub(super) use claim::BOUND;
pub use held::Reservation;
pub use keeper::start;
pub use lend::{Client, Lending, Position};

/// How long the last refusal waits for units that others hold.
const RECALL_WAIT: Duration = Duration::from_millis(250);
/// They are not called back again sooner.
const RECALL_AGAIN: Duration = Duration::from_millis(50);
/// When a refused caller may come back while units may come back; a refusal is remembered as long.
const COME_BACK: Duration = Duration::from_secs(1);
/// Callers that wait to read where an account stands, keys in test mode that check among them: as many of an account as
/// may be in flight by its keys, by default.
const MAX_READS: usize = 2_500;

/// The answer of a check.
#[derive(Debug, Clone, Copy)]
pub struct Decision {
    /// Units asked for.
    pub units: i64,
    /// Whether they may be used.
    pub verdict: Verdict,
    /// Units consumed in the period, these included: what the database last said, less what this replica
    /// holds unspent.
    pub consumed: i64,
    /// What holds for the account.
    pub terms: Terms,
    /// The period.
    pub period: Period,
    /// When the period is over at the latest.
    pub resets: BootTime,
}

/// Whether units may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Under this lease.
    Admitted(Uuid),
    /// Without a lease: the database is away, and the plan refuses nobody.
    Open,
    /// Not now; when to come back.
    Refused(Duration),
}

/// The quota of all accounts, as this replica holds it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Quota(Arc<Holder>);

#[derive(Debug)]
struct Holder {
    id: Uuid,
    name: String,
    pool: PgPool,
    feed: Arc<Feed>,
    known: Arc<Known>,
    /// Accounts that changed are read, not all at once.
    learning: Semaphore,
    /// Where an account stands is read for one caller at a time: each read takes a connection.
    reads: Turns,
    /// What is known of accounts may not be true any more.
    doubts: Notify,
    accounts: DashMap<EcoId, Slot, foldhash::fast::RandomState>,
    clock: LaggingClock,
    /// Counts the times at which everything changed.
    epoch: AtomicU64,
    returns: Returns,
    clients: Arc<Clients>,
    /// How long clients may use what they hold while no changes are heard.
    stale_max: Duration,
    /// Claims under way: they end also when their callers do not wait for them.
    claims: TaskTracker,
    closing: CancellationToken,
    /// Whether the database knows this holder.
    registered: AtomicBool,
    outage: Arc<Outage>,
    metrics: QuotaMetrics,
}

impl Quota {
    /// Registers what it counts.
    pub fn register(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
    }

    /// Admits units, all or none. From memory where a lease suffices.
    pub async fn admit(&self, eco_id: &EcoId, units: i64) -> Result<Decision, Error> {
        Ok(self.ask(eco_id, Ask::of(units)).await?.0)
    }

    /// Admits units from memory alone; `None`: the database has to be asked.
    pub fn admit_now(&self, eco_id: &EcoId, units: i64) -> Option<Decision> {
        let (decision, _) = self.decide(eco_id, Ask::of(units))?;
        self.0.metrics.count(&decision);
        Some(decision)
    }

    /// Admits units that go back unless the reservation is kept; `None`: there is nothing to give back. The lease is
    /// not settled before the reservation is gone, so that it must not last.
    pub async fn reserve(
        &self,
        eco_id: &EcoId,
        units: i64,
    ) -> Result<(Decision, Option<Reservation>), Error> {
        self.ask(eco_id, Ask { reserved: true, ..Ask::of(units) }).await
    }

    async fn ask(&self, eco_id: &EcoId, ask: Ask) -> Result<(Decision, Option<Reservation>), Error> {
        let decided = match self.decide(eco_id, ask) {
            Some(decided) => decided,
            // In a box of its own: it is far larger than what nearly all checks need.
            None => Box::pin(self.0.insist(eco_id, ask)).await?,
        };
        self.0.metrics.count(&decided.0);
        Ok(decided)
    }

    /// Decides from memory alone; `None`: the database has to be asked.
    fn decide(&self, eco_id: &EcoId, ask: Ask) -> Option<(Decision, Option<Reservation>)> {
        let (step, account) = {
            let slot = self.0.accounts.get(eco_id)?;
            let step = slot.decide(ask, &self.0.clock, || self.0.feed.is_heard())?;
            (step, slot.runs_low().then(|| slot.account.clone()))
        };
        if let Some(account) = account {
            self.0.refill(eco_id, account);
        }
        match step {
            Step::Decided(decision, reservation) => Some((decision, reservation)),
            Step::Short { .. } => None,
        }
    }

    /// What `read` says of where the account stands, without the units that this replica has not spent: they
    /// are no more consumed than those that nobody was granted.
    pub async fn standing<F>(&self, eco_id: &EcoId, read: F) -> Result<Standing, Error>
    where
        F: Future<Output = Result<Standing, Error>>,
    {
        let _read = self.0.reads.take(eco_id).await.ok_or(Error::TooManyReads)?;
        // Found out, it may be, by those whose turn was before.
        if self.0.outage.is_on() {
            return Err(Error::Database(sqlx::Error::PoolTimedOut));
        }
        let account = self.0.accounts.get(eco_id).map(|slot| slot.account.clone());
        // No grant comes between what the database says and what is in memory.
        let _turn = match &account {
            Some(account) => Some(account.turn.lock().await),
            None => None,
        };
        let before = self.0.known.before();
        let standing = read.await;
        self.0.outage.note(standing.as_ref().is_err_and(Error::is_outage));
        let mut standing = standing?;
        self.0.known.learn_standing(before, eco_id, &standing);
        if account.is_none() {
            return Ok(standing);
        }
        standing.consumption.returned += self.0.unspent(eco_id, standing.period);
        Ok(standing)
    }
}

impl Holder {
    /// Admits units, and asks the database for them as often as it helps.
    async fn insist(
        self: &Arc<Self>,
        eco_id: &EcoId,
        mut ask: Ask,
    ) -> Result<(Decision, Option<Reservation>), Error> {
        let account = self.account(eco_id);
        let until = Instant::now() + RECALL_WAIT;
        let units = ask.units;
        let open = |error| self.open(eco_id, units).map(|decision| (decision, None)).ok_or(error);
        loop {
            let returned = account.returned.notified();
            if self.outage.is_on() {
                return open(Error::Database(sqlx::Error::PoolTimedOut));
            }
            let step = match self.claim(eco_id, &account, ask).await {
                Err(error) if error.is_unanswered() => return open(error),
                step => step?,
            };
            match step {
                Step::Decided(decision, reservation) => return Ok((decision, reservation)),
                Step::Short { refusal, recallable } => {
                    if !recallable || ask.last {
                        return Ok((refusal, None));
                    }
                    self.recall(eco_id, &account).await;
                    if timeout_at(until, returned).await.is_err() {
                        // Once more, whatever is remembered: a notification may be lost.
                        ask = ask.at_last();
                    }
                }
            }
        }
    }

    /// What is held of the account, if only nothing.
    fn account(&self, eco_id: &EcoId) -> Arc<Account> {
        if let Some(slot) = self.accounts.get(eco_id) {
            return slot.account.clone();
        }
        self.accounts.entry(eco_id.clone()).or_default().account.clone()
    }

    /// Units of the period that the database has as granted and that are not spent.
    fn unspent(&self, eco_id: &EcoId, period: Period) -> i64 {
        self.accounts
            .get(eco_id)
            .filter(|slot| slot.is_of(period))
            .map_or(0, |slot| slot.unspent_or_returning())
    }

    /// Admits without a lease, where the plan refuses nobody, for all that is known; what is recorded then counts by
    /// itself.
    fn open(self: &Arc<Self>, eco_id: &EcoId, units: i64) -> Option<Decision> {
        let (terms, period, now) = self.known.terms(eco_id)?;
        let (decision, account) = {
            let slot = self.accounts.get(eco_id)?;
            (slot.open(units, View::known(terms, period, now))?, slot.account.clone())
        };
        self.refill(eco_id, account);
        Some(decision)
    }

    fn note_outcome<T>(&self, result: &Result<T, sqlx::Error>) {
        self.outage.note(result.as_ref().is_err_and(db::is_away));
    }
}
