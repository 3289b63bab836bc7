//! A run: who owes, so many accounts at once, a heartbeat that keeps the figures and proves the lease.

use std::time::{Duration, Instant};

use futures::{StreamExt, future, stream};
use nexus_core::money::OutOfRange;
use nexus_kit::db;
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ChargeContext, charge_account, recheck};
use crate::{
    app::refresh,
    domain::{
        period::{Candidate, PeriodKey},
        run::{AccountResult, Figures, RunStatus},
    },
    error::Error,
    store::{
        lease, records,
        runs::{self, Begun},
    },
};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// A heartbeat that takes longer means that the lease may be lost.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is seen of a run while it is at work.
#[derive(Debug, Clone, Default)]
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
}

impl Run {
    /// Works to the end. `lease` is the connection that holds the lease.
    pub(super) async fn run(self, mut lease: PgConnection) {
        let working = CancellationToken::new();
        let work = async {
            let result = self.work().await;
            working.cancel();
            result
        };
        let (result, ()) = future::join(work, self.heartbeat(&mut lease, &working)).await;
        let end = match &result {
            Ok(true) => RunStatus::Finished,
            Ok(false) => RunStatus::Failed,
            Err(error) => {
                tracing::error!(%error, "a run failed");
                RunStatus::Failed
            }
        };
        if let Err(error) = self.keep_end(lease, end).await {
            tracing::error!(%error, "the end of a run could not be kept; the next run marks it as failed");
        }
        let figures = self.live.borrow().figures.clone();
        tracing::info!(
            ?end,
            processed = figures.processed,
            charged = figures.charged,
            failed = figures.failed,
            total_micros = figures.total.0,
            "a run ended"
        );
        self.live.send_modify(|live| live.ended = Some((Instant::now(), end)));
    }

    /// Rechecks what was replaced, then charges whoever owes; false: cut short.
    async fn work(&self) -> Result<bool, Error> {
        let mut rechecked =
            recheck::recheck_all(&self.context, self.begun.accounts.as_deref(), self.concurrency).await?;
        let accounts = self.who_owes().await?;
        let goes_on = || !self.context.halt.is_cancelled() && !self.context.shutdown.is_cancelled();
        let mut left = accounts.len();
        let accounts: Vec<_> = accounts
            .into_iter()
            .map(|periods| {
                let error = periods.first().and_then(|period| rechecked.remove(&period.eco_id)).flatten();
                (periods, error)
            })
            .collect();
        for error in rechecked.into_values() {
            self.live.send_modify(|live| live.figures.add(AccountResult { error, ..Default::default() }));
        }
        stream::iter(accounts)
            .take_while(|_| future::ready(goes_on()))
            .map(|(periods, error)| async move {
                let mut result = charge_account(&self.context, &periods).await;
                result.error = result.error.or(error);
                result
            })
            .buffer_unordered(self.concurrency)
            .for_each(|result| {
                left -= 1;
                self.live.send_modify(|live| live.figures.add(result));
                future::ready(())
            })
            .await;
        // An account may have been left where it was by whatever stopped the run.
        let left_open = self.context.shutdown.is_cancelled() && self.live.borrow().figures.failed > 0;
        Ok(left == 0 && !left_open && !self.context.halt.is_cancelled())
    }

    /// The periods with something to do, by account. The queue is emptied first, so that no account is
    /// missed whatever the refresher has done.
    async fn who_owes(&self) -> Result<Vec<Vec<PeriodKey>>, Error> {
        refresh::drain(&self.context.pool).await?;
        let mut connection = db::acquire(&self.context.pool).await?;
        records::settle_empty(&mut connection, self.begun.accounts.as_deref()).await?;
        let candidates = records::candidates(&mut connection, self.begun.accounts.as_deref()).await?;
        Ok(by_account(candidates)?)
    }

    async fn heartbeat(&self, lease: &mut PgConnection, working: &CancellationToken) {
        loop {
            tokio::select! {
                () = working.cancelled() => return,
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
            let figures = self.live.borrow().figures.clone();
            let beat = runs::update(&mut *lease, &self.begun, &figures, RunStatus::Running);
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

    /// Keeps the end and gives the lease back, in this order: who has the lease next sees no run at work.
    async fn keep_end(&self, mut lease: PgConnection, end: RunStatus) -> sqlx::Result<()> {
        let figures = self.live.borrow().figures.clone();
        if self.context.halt.is_cancelled() {
            let mut connection = db::acquire(&self.context.pool).await?;
            return runs::update(&mut connection, &self.begun, &figures, end).await;
        }
        runs::update(&mut lease, &self.begun, &figures, end).await?;
        lease::give_back(lease).await
    }
}

fn by_account(candidates: Vec<Candidate>) -> Result<Vec<Vec<PeriodKey>>, OutOfRange> {
    let mut accounts: Vec<Vec<PeriodKey>> = Vec::new();
    for candidate in candidates {
        if !candidate.owes()? {
            continue;
        }
        match accounts.last_mut() {
            Some(periods) if periods.first().is_some_and(|p| p.eco_id == candidate.key.eco_id) => {
                periods.push(candidate.key);
            }
            _ => accounts.push(vec![candidate.key]),
        }
    }
    Ok(accounts)
}
