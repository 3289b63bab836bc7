//! A run: reads who owes page by page, writes down some charges at a time, has so many accounts charged at once; a
//! heartbeat keeps the figures and proves the lease.
//!
//! What it holds in memory does not grow with the accounts: a page of them, and what the workers have in hand and
//! before them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{TryStreamExt, future, stream};
use nexus_kit::db;
use sqlx::PgConnection;
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ChargeContext,
    charge::{RECONCILE_REQUIRED, Step, charge_account_from, next_steps},
    pages::{Pages, Reader, Todo, owing},
    recheck,
};
use crate::{
    app::{clear_ended, refresh},
    domain::{
        period::PeriodKey,
        run::{AccountError, AccountResult, Figures, RunStatus},
    },
    error::Error,
    store::{
        ended_subscriptions,
        lease::{self, Lease},
        records, run_accounts,
        runs::{self, Begun},
        settlements,
    },
};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// A heartbeat that takes longer means that the lease may be lost.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// Accounts whose charges are written down in one transaction, at most.
const WRITTEN_AT_ONCE: usize = 64;
/// Accounts a page of those with ended subscriptions or stranded charges has.
const ENDED_AT_ONCE: i64 = 1_000;

/// What is seen of a run while it is at work.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Live {
    /// Figures so far.
    pub(super) figures: Figures,
    /// When and how it ended; `None`: it goes on.
    pub(super) ended: Option<(Instant, RunStatus)>,
}

/// A run about to begin.
pub(super) struct Run {
    pub(super) context: ChargeContext,
    pub(super) begun: Begun,
    pub(super) concurrency: usize,
    pub(super) live: watch::Sender<Live>,
    /// Whether an account was left where it was, for the run was stopped.
    pub(super) left: AtomicBool,
}

/// An account on its way to the workers.
struct Job {
    eco_id: String,
    todo: Todo,
    /// What is to be done about its first period, written down.
    first: Option<Step>,
}

impl Run {
    /// Works to the end. `lease` is the connection that holds the lease.
    pub(super) async fn run(self, mut lease: PgConnection) {
        let run = Arc::new(self);
        let working = CancellationToken::new();
        let work = async {
            let result = run.work().await;
            working.cancel();
            result
        };
        let (result, ()) = future::join(work, run.heartbeat(&mut lease, &working)).await;
        let end = match &result {
            Ok(true) => RunStatus::Finished,
            Ok(false) => RunStatus::Failed,
            Err(error) => {
                tracing::error!(%error, "a run failed");
                RunStatus::Failed
            }
        };
        if let Err(error) = run.keep_end(lease, end).await {
            tracing::error!(%error, "the end of a run could not be kept; the next run marks it as failed");
        }
        let figures = run.figures();
        tracing::info!(
            ?end,
            processed = figures.processed,
            charged = figures.charged,
            failed = figures.failed,
            total_micros = figures.total.0,
            "a run ended"
        );
        run.live.send_modify(|live| live.ended = Some((Instant::now(), end)));
    }

    /// Charges whoever owes; false: cut short.
    async fn work(self: &Arc<Self>) -> Result<bool, Error> {
        self.begin().await?;
        // Each takes the next account when it is free.
        let (sender, receiver) = mpsc::channel(self.concurrency);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut workers: JoinSet<()> = (0..self.concurrency)
            .map(|_| {
                let (run, receiver) = (self.clone(), receiver.clone());
                async move { run.work_off(&receiver).await }.in_current_span()
            })
            .collect();
        // They alone have it: where none is left, nothing more is fed.
        drop(receiver);
        let fed = self.feed(sender).await;
        while let Some(ended) = workers.join_next().await {
            if let Err(panicked) = ended {
                std::panic::resume_unwind(panicked.into_panic());
            }
        }
        if fed.is_ok() && self.goes_on() {
            self.clear_ended().await?;
            self.tell_parked().await?;
        }
        // One that failed may have been left where it was by whatever stopped the run.
        let left = self.left.load(Ordering::Relaxed)
            || (self.context.shutdown.is_cancelled() && self.figures().failed > 0);
        Ok(fed? && !left && !self.context.halt.is_cancelled())
    }

    fn goes_on(&self) -> bool {
        !self.context.halt.is_cancelled() && !self.context.shutdown.is_cancelled()
    }

    fn figures(&self) -> Figures {
        self.live.borrow().figures
    }

    fn accounts(&self) -> Option<&[String]> {
        self.begun.accounts.as_deref()
    }

    /// Empties the queue, so that no account is missed whatever the refresher has done, and counts who has something
    /// to do.
    async fn begin(&self) -> Result<(), Error> {
        refresh::drain(&self.context.pool).await?;
        let mut connection = db::acquire(&self.context.pool).await?;
        records::settle_empty(&mut connection, self.accounts()).await?;
        let mut pages = Pages::new(Reader::Run, self.accounts());
        let mut count = self.figures().processed - self.figures().failed;
        loop {
            let page = pages.next(&mut connection).await?;
            if page.is_empty() {
                break;
            }
            count = count.saturating_add(i32::try_from(page.len()).unwrap_or(i32::MAX));
        }
        self.live.send_modify(|live| live.figures.accounts = count);
        Ok(())
    }

    /// Clears subscriptions that have ended, and makes invoices for charges that none takes any more. What fails is told
    /// of the account; the next run goes on.
    async fn clear_ended(&self) -> Result<(), Error> {
        let mut after = String::new();
        {
            let mut connection = db::acquire(&self.context.pool).await?;
            let missed = ended_subscriptions::take_up(&mut connection).await?;
            if missed > 0 {
                tracing::warn!(missed, "subscriptions had ended and nobody had noted it");
            }
        }
        loop {
            let page = {
                let mut connection = db::acquire(&self.context.pool).await?;
                settlements::accounts(&mut connection, self.accounts(), &after, ENDED_AT_ONCE).await?
            };
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(last);
            stream::iter(page.into_iter().map(Ok))
                .try_for_each_concurrent(self.concurrency, |eco_id| self.clear_account(eco_id))
                .await?;
        }
    }

    async fn clear_account(&self, eco_id: String) -> Result<(), Error> {
        if !self.goes_on() {
            return Ok(());
        }
        let failed = match clear_ended::run(&self.context, &eco_id).await {
            Ok((_, result)) => result.error,
            Err(error @ Error::ReconcileRequired) => return Err(error),
            Err(error) => {
                tracing::error!(%error, eco_id, "an account's charges could not be collected");
                let message =
                    "An invoice could not be made by a fault of ours; the next run goes on with it.";
                Some(AccountError::new(&eco_id, "INTERNAL", message))
            }
        };
        if let Some(error) = failed {
            let mut connection = db::acquire(&self.context.pool).await?;
            run_accounts::fail(&mut connection, self.begun.run_id, &error).await?;
        }
        Ok(())
    }

    /// Tells of the periods that were parked outside of runs: no run looks at them any more.
    async fn tell_parked(&self) -> Result<(), Error> {
        let mut connection = db::acquire(&self.context.pool).await?;
        Ok(run_accounts::tell_parked(&mut connection, self.begun.run_id, self.accounts()).await?)
    }

    /// Hands the accounts to the workers, as they take them; false: not all of them.
    async fn feed(&self, workers: mpsc::Sender<Job>) -> Result<bool, Error> {
        let mut pages = Pages::new(Reader::Run, self.accounts());
        loop {
            let page = {
                let mut connection = db::acquire(&self.context.pool).await?;
                pages.next(&mut connection).await?
            };
            if page.is_empty() {
                return Ok(true);
            }
            let mut accounts = page.into_iter();
            loop {
                let some: Vec<Job> = accounts
                    .by_ref()
                    .take(self.concurrency.min(WRITTEN_AT_ONCE))
                    .map(|(eco_id, todo)| Job { eco_id, todo, first: None })
                    .collect();
                if some.is_empty() {
                    break;
                }
                if !self.goes_on() {
                    return Ok(false);
                }
                for job in self.write_down(some).await? {
                    if workers.send(job).await.is_err() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Writes down what the accounts owe for their first periods, in one transaction. Those with charges to recheck
    /// come after that.
    async fn write_down(&self, mut jobs: Vec<Job>) -> Result<Vec<Job>, Error> {
        if self.begun.resumed.is_some() {
            self.forget(&jobs).await?;
        }
        let (of, firsts): (Vec<usize>, Vec<PeriodKey>) = jobs
            .iter()
            .enumerate()
            .filter(|(_, job)| !job.todo.recheck)
            .filter_map(|(place, job)| Some((place, job.todo.periods.first()?.clone())))
            .unzip();
        match next_steps(&self.context, &firsts).await {
            Ok(steps) => {
                for (place, step) in of.into_iter().zip(steps) {
                    jobs[place].first = Some(step);
                }
            }
            Err(error @ Error::ReconcileRequired) => return Err(error),
            // One of them is at fault, or another has one of them: each by itself.
            Err(error) => tracing::info!(%error, accounts = firsts.len(), "writing down one by one"),
        }
        Ok(jobs)
    }

    /// What a run that goes on knows of accounts that it looks at again.
    async fn forget(&self, jobs: &[Job]) -> Result<(), Error> {
        let eco_ids: Vec<String> = jobs.iter().map(|job| job.eco_id.clone()).collect();
        let mut connection = db::acquire(&self.context.pool).await?;
        let known = run_accounts::forget(&mut connection, self.begun.run_id, &eco_ids).await?;
        self.live.send_modify(|live| known.iter().for_each(|had_failed| live.figures.take_back(*had_failed)));
        Ok(())
    }

    async fn work_off(&self, jobs: &Mutex<mpsc::Receiver<Job>>) {
        loop {
            let next = jobs.lock().await.recv().await;
            let Some(job) = next else { return };
            // What is written down and not sent is the next run's.
            if !self.goes_on() {
                self.left.store(true, Ordering::Relaxed);
                continue;
            }
            let result = self.charge(job).await;
            self.live.send_modify(|live| live.figures.add(&result));
        }
    }

    async fn charge(&self, job: Job) -> AccountResult {
        let Job { eco_id, mut todo, first } = job;
        let mut rechecked = None;
        if todo.recheck {
            match self.recheck(&eco_id).await {
                Ok((error, periods)) => {
                    rechecked = error;
                    todo.periods = periods;
                }
                Err(error) => {
                    tracing::error!(%error, eco_id, "an account's charges could not be rechecked");
                    let message =
                        "A charge could not be rechecked by a fault of ours; the next run goes on with it.";
                    rechecked = Some(AccountError::new(&eco_id, "INTERNAL", message));
                }
            }
        }
        let mut result = charge_account_from(&self.context, &todo.periods, first).await;
        if result.error.as_ref().is_some_and(|error| error.reason == RECONCILE_REQUIRED) {
            self.context.halt.cancel();
        }
        result.error = result.error.or(rechecked);
        if let Err(error) = self.keep(&eco_id, &result).await {
            tracing::error!(%error, eco_id, "what became of an account could not be kept");
        }
        result
    }

    /// Rechecks; then other periods may have something to do.
    async fn recheck(&self, eco_id: &str) -> Result<(Option<AccountError>, Vec<PeriodKey>), Error> {
        let error = recheck::recheck_account(&self.context, eco_id).await?;
        Ok((error, owing(&self.context.pool, eco_id, None).await?))
    }

    /// Keeps what the ledger does not tell of an account.
    async fn keep(&self, eco_id: &str, result: &AccountResult) -> Result<(), Error> {
        if result.error.is_none() && result.charged {
            return Ok(());
        }
        let mut connection = db::acquire(&self.context.pool).await?;
        match &result.error {
            Some(error) => run_accounts::fail(&mut connection, self.begun.run_id, error).await?,
            None => run_accounts::note(&mut connection, self.begun.run_id, eco_id).await?,
        }
        Ok(())
    }

    async fn heartbeat(&self, lease: &mut PgConnection, working: &CancellationToken) {
        loop {
            tokio::select! {
                () = working.cancelled() => return,
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
            let figures = self.figures();
            let beat = runs::beat(&mut *lease, &self.begun, &figures);
            match tokio::time::timeout(HEARTBEAT_TIMEOUT, beat).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.lease_lost(&error),
                Err(elapsed) => return self.lease_lost(&elapsed),
            }
        }
    }

    fn lease_lost(&self, error: &dyn std::fmt::Display) {
        tracing::error!(%error, "the lease of a run may be lost: it sends nothing more");
        self.context.halt.cancel();
    }

    /// Keeps the end and gives the lease back, in this order: who has the lease next sees no run at work. The figures
    /// are then those that follow from what is kept.
    async fn keep_end(&self, mut lease: PgConnection, end: RunStatus) -> sqlx::Result<()> {
        let accounts = self.figures().known();
        let kept = if self.context.halt.is_cancelled() {
            let mut connection = db::acquire(&self.context.pool).await?;
            runs::end(&mut connection, &self.begun, accounts, end).await?
        } else {
            let kept = runs::end(&mut lease, &self.begun, accounts, end).await?;
            lease::give_back(lease, Lease::Run).await?;
            kept
        };
        if let Some(figures) = kept {
            self.live.send_modify(|live| live.figures = figures);
        }
        Ok(())
    }
}
