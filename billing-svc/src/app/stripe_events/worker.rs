//! Takes events that are due, and applies each in a transaction that holds its row: of several replicas one has it, and
//! a process that ends anywhere leaves it as if it had not been begun.

use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use nexus_kit::{db, metrics::Metrics};
use sqlx::{Acquire, PgConnection, PgPool, Postgres, Transaction};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Context, Failure,
    apply::apply,
    settle::{Applied, settle},
};
use crate::{
    app::{process_overage::ChargeContext, settle_draft::Draft},
    domain::stripe_event::{Outcome, backoff},
    error::Error,
    metrics::EventMetrics,
    store::stripe_events::{self, Job},
};

/// How often is looked for events that another replica stored, or that are due again.
const EVERY: Duration = Duration::from_secs(1);
/// After a look that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest time one may take.
pub(super) const WITHIN: Duration = Duration::from_secs(75);
/// A transaction that stands idle for longer is of a process that is gone.
pub(super) const IDLE: Duration = Duration::from_secs(90);
/// When one is tried again whose subscription another replica is at work on.
const PUT_OFF: Duration = Duration::from_millis(500);
/// When one is due again whose server is gone while it settles.
const SETTLING: Duration = Duration::from_secs(90);
/// How often what waits is counted.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// Applies events until the server stops.
pub struct Worker {
    pool: PgPool,
    context: Context,
    charging: ChargeContext,
    concurrency: usize,
    wake: Arc<Notify>,
    applied: Arc<Notify>,
    metrics: EventMetrics,
    shutdown: CancellationToken,
    busy: Busy,
}

/// Subscriptions that are worked on here.
type Busy = Arc<Mutex<HashSet<String>>>;

/// An event that is taken.
struct Taken {
    transaction: Transaction<'static, Postgres>,
    job: Job,
    _busy: Option<BusyGuard>,
}

impl Worker {
    /// `concurrency`: events that are applied at once; each has a connection for as long as Stripe takes to answer.
    /// `wake`: an event was stored; `applied`: one was applied.
    pub fn new(
        pool: PgPool,
        context: Context,
        charging: ChargeContext,
        concurrency: usize,
        (wake, applied): (Arc<Notify>, Arc<Notify>),
        metrics: &Metrics,
        shutdown: CancellationToken,
    ) -> Self {
        let metrics = EventMetrics::new(metrics);
        Self { pool, context, charging, concurrency, wake, applied, metrics, shutdown, busy: Busy::default() }
    }

    /// Works until `shutdown`, then brings what is in hand to its end. Dropped, it ends where it is.
    pub async fn run(self) {
        let worker = Arc::new(self);
        let mut jobs: JoinSet<()> = JoinSet::new();
        let (mut failed, mut counted) = (false, None);
        loop {
            while jobs.try_join_next().is_some() {}
            while jobs.len() >= worker.concurrency {
                jobs.join_next().await;
            }
            if worker.shutdown.is_cancelled() {
                break;
            }
            let looked = async {
                if counted.is_none_or(|at: Instant| at.elapsed() >= COUNT_EVERY) {
                    worker.count().await?;
                    counted = Some(Instant::now());
                }
                worker.take().await
            };
            let wait = match looked.await {
                Ok(Some(taken)) => {
                    failed = false;
                    let worker = worker.clone();
                    jobs.spawn(async move { worker.carry_out(taken).await });
                    continue;
                }
                Ok(None) => {
                    failed = false;
                    EVERY
                }
                Err(error) if failed => {
                    tracing::debug!(%error, "Stripe's events could still not be looked for");
                    PAUSE
                }
                Err(error) => {
                    tracing::warn!(%error, "Stripe's events could not be looked for");
                    failed = true;
                    PAUSE
                }
            };
            tokio::select! {
                () = worker.shutdown.cancelled() => {}
                () = worker.wake.notified() => {}
                // Of one subscription there may be more.
                Some(_done) = jobs.join_next() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Takes an event that is due.
    async fn take(&self) -> Result<Option<Taken>, Error> {
        let mut transaction = db::begin(&self.pool).await?;
        let busy: Vec<String> =
            self.busy.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let job = stripe_events::take(&mut transaction, &busy, IDLE).await?;
        Ok(job.map(|job| {
            let _busy = job.subscription_id.clone().map(|id| BusyGuard::new(&self.busy, id));
            Taken { transaction, job, _busy }
        }))
    }

    async fn carry_out(&self, taken: Taken) {
        let event_id = taken.job.event_id.clone();
        let span = tracing::info_span!("stripe.event", event_id, kind = taken.job.kind);
        if let Err(error) = self.work(taken).instrument(span).await {
            // The transaction is gone, and the event as it was: it is due still.
            tracing::warn!(%error, event_id, "what became of an event could not be written down");
        }
    }

    async fn work(&self, taken: Taken) -> Result<(), Error> {
        let Taken { mut transaction, job, _busy } = taken;
        match self.attempt(&mut transaction, &job).await {
            Ok(Applied { outcome, draft: None }) => self.finish(transaction, &job, outcome).await?,
            Ok(Applied { outcome, draft: Some(draft) }) => {
                // It is charged by what is committed. Until that is done the event is not, and is taken again after a
                // crash.
                stripe_events::put_off(&mut transaction, &job.event_id, SETTLING).await?;
                transaction.commit().await?;
                let settled = self.settle(&draft).await;
                let mut transaction = db::begin(&self.pool).await?;
                match settled {
                    Ok(()) => self.finish(transaction, &job, outcome).await?,
                    Err(failure) => {
                        self.fail(&mut transaction, &job, &failure).await?;
                        transaction.commit().await?;
                    }
                }
            }
            Err(Failure::Busy) => {
                stripe_events::put_off(&mut transaction, &job.event_id, PUT_OFF).await?;
                transaction.commit().await?;
            }
            Err(failure) => {
                self.fail(&mut transaction, &job, &failure).await?;
                transaction.commit().await?;
            }
        }
        Ok(())
    }

    async fn finish(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        job: &Job,
        outcome: Outcome,
    ) -> Result<(), Error> {
        stripe_events::finish(&mut transaction, &job.event_id, outcome).await?;
        transaction.commit().await?;
        self.applied.notify_one();
        self.metrics.count(outcome.as_str());
        tracing::info!(outcome = outcome.as_str(), attempts = job.attempts, "an event was processed");
        Ok(())
    }

    async fn settle(&self, draft: &Draft) -> Result<(), Failure> {
        let settling = AssertUnwindSafe(settle(&self.charging, draft)).catch_unwind();
        match tokio::time::timeout(WITHIN, settling).await {
            Ok(Ok(settled)) => settled,
            Ok(Err(_panic)) => Err(Failure::Broken("settling panicked")),
            Err(_elapsed) => Err(Failure::Unsettled("settling took too long".to_owned())),
        }
    }

    /// Applies an event within a savepoint, so that a failure leaves nothing of it.
    async fn attempt(&self, transaction: &mut PgConnection, job: &Job) -> Result<Applied, Failure> {
        let mut savepoint = transaction.begin().await?;
        let applying = AssertUnwindSafe(apply(&mut savepoint, &self.context, job)).catch_unwind();
        let applied = match tokio::time::timeout(WITHIN, applying).await {
            Ok(Ok(applied)) => applied,
            Ok(Err(_panic)) => Err(Failure::Broken("applying it panicked")),
            Err(_elapsed) => Err(Failure::Broken("applying it took too long")),
        };
        match applied {
            Ok(_) => savepoint.commit().await?,
            Err(_) => savepoint.rollback().await?,
        }
        applied
    }

    async fn fail(&self, db: &mut PgConnection, job: &Job, failure: &Failure) -> Result<(), Error> {
        let failures = job.attempts.saturating_add(1);
        let again_in = (!failure.is_given_up(failures)).then(|| {
            let asked = match failure {
                Failure::Stripe(doubt) => doubt.retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            self.context.pace.pause_all(asked);
            backoff(failures, &mut rand::rng()).max(asked)
        });
        stripe_events::fail(db, &job.event_id, &failure.to_string(), again_in).await?;
        if again_in.is_some() {
            self.metrics.count("failed");
            tracing::warn!(error = %failure, failures, "an event could not be applied, and is tried again");
        } else {
            self.metrics.count("parked");
            tracing::error!(error = %failure, failures, "an event is parked: mend this, then have Stripe send it again");
        }
        Ok(())
    }

    async fn count(&self) -> Result<(), Error> {
        let mut connection = db::acquire(&self.pool).await?;
        self.metrics.show(stripe_events::backlog(&mut connection).await?);
        Ok(())
    }
}

/// A subscription is worked on here until this is dropped.
struct BusyGuard {
    all: Busy,
    id: String,
}

impl BusyGuard {
    fn new(all: &Busy, id: String) -> Self {
        all.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        Self { all: all.clone(), id }
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
