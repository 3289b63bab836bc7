//! One run at a time, over all replicas: begins it, hands out its figures, ends with the server.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    ChargeContext,
    run::{Live, Run},
};
use crate::{
    domain::run::{Figures, RunStatus},
    error::Error,
    payments::{Payments, pace::Pace},
    store::{
        identity, lease,
        runs::{self, Begun},
    },
};

/// A call of ProcessOverage.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A repeat returns the first run's figures, and goes on with it where it was cut short.
    pub request_id: Option<Uuid>,
    /// Only these accounts; `None`: all.
    pub accounts: Option<Vec<String>>,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A run, at its good end or so far.
    Run(Snapshot),
    /// Another run was at work; nothing was done.
    AlreadyRunning,
}

/// A run at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The run.
    pub run_id: Uuid,
    /// How far it is.
    pub status: RunStatus,
    /// Its figures.
    pub figures: Figures,
    /// How long it has taken.
    pub duration_ms: i64,
}

/// Runs ProcessOverage. Runs do not depend on who called for them; they end with the server.
pub struct Engine {
    pool: PgPool,
    payments: Arc<dyn Payments>,
    pace: Arc<Pace>,
    concurrency: usize,
    shutdown: CancellationToken,
    killed: CancellationToken,
    tasks: TaskTracker,
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    run_id: Uuid,
    started: Instant,
    live: watch::Receiver<Live>,
}

impl Engine {
    /// Runs take no new accounts after `shutdown`.
    pub fn new(
        pool: PgPool,
        payments: Arc<dyn Payments>,
        pace: impl Into<Arc<Pace>>,
        concurrency: usize,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            pool,
            payments,
            pace: pace.into(),
            concurrency,
            shutdown,
            killed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            current: Mutex::default(),
        }
    }

    /// When dropped, runs end where they are.
    pub fn kill_guard(&self) -> DropGuard {
        self.killed.clone().drop_guard()
    }

    /// Waits until what the runs had in hand is done. To be called after `shutdown`.
    pub async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Begins a run, named `run_id`, or goes on with the one of the request where it was cut short, and
    /// waits for its end, until `wait_until` at most.
    pub async fn process(
        &self,
        request: Request,
        run_id: Uuid,
        wait_until: tokio::time::Instant,
    ) -> Result<Answer, Error> {
        if self.shutdown.is_cancelled() {
            return Err(Error::Stopping);
        }
        if let Some(run) = self.earlier(&request).await?
            && (run.status == RunStatus::Finished || self.current(run.run_id).is_some())
        {
            return self.follow(run, wait_until).await;
        }
        // A connection of its own, which the pool does not take back: the lease lives as long as it does.
        let mut connection = db::acquire(&self.pool).await?.detach();
        // Only who has the lease knows that nobody is at work on a run which is not done.
        if !lease::try_run(&mut connection).await? {
            drop(connection);
            return match self.earlier(&request).await? {
                Some(run) => self.follow(run, wait_until).await,
                None => Ok(Answer::AlreadyRunning),
            };
        }
        // A ledger that may have lost rows would be charged again.
        if identity::remembered(&mut connection).await? != identity::current(&mut connection).await? {
            lease::give_back(connection).await?;
            return Err(Error::ReconcileRequired);
        }
        let orphans = runs::fail_orphans(&mut connection).await?;
        if orphans > 0 {
            tracing::warn!(orphans, "a run before this one was cut off");
        }
        let begun = match find(&mut connection, &request).await? {
            None => runs::insert(&mut connection, run_id, request.request_id, request.accounts).await?,
            Some(run) if run.status == RunStatus::Finished => {
                lease::give_back(connection).await?;
                return Snapshot::from(run).answer();
            }
            Some(run) => runs::resume(&mut connection, run.run_id).await?,
        };
        self.spawn(connection, begun).wait(wait_until).await?.answer()
    }

    fn spawn(&self, lease: PgConnection, begun: Begun) -> Current {
        let run_id = begun.run_id;
        let (sender, live) = watch::channel(Live { figures: begun.figures.clone(), ended: None });
        let current = Current { run_id, started: Instant::now(), live };
        let run = Run {
            context: ChargeContext {
                pool: self.pool.clone(),
                payments: self.payments.clone(),
                pace: self.pace.clone(),
                run_id,
                halt: CancellationToken::new(),
                shutdown: self.shutdown.clone(),
            },
            begun,
            concurrency: self.concurrency,
            live: sender,
        };
        let killed = self.killed.clone();
        // Within the caller's trace, although not within its call.
        let span = tracing::info_span!("overage.run", %run_id);
        let task = async move {
            if killed.run_until_cancelled(run.run(lease)).await.is_none() {
                tracing::warn!(%run_id, "a run was cut off with the server");
            }
        };
        self.tasks.spawn(task.instrument(span));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current.clone());
        current
    }

    async fn earlier(&self, request: &Request) -> Result<Option<runs::Run>, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        Ok(find(&mut connection, request).await?)
    }

    /// The figures of a run that was begun before: followed to its end if it is at work in this process.
    async fn follow(&self, run: runs::Run, wait_until: tokio::time::Instant) -> Result<Answer, Error> {
        match self.current(run.run_id) {
            Some(current) => current.wait(wait_until).await?.answer(),
            None => Snapshot::from(run).answer(),
        }
    }

    /// The run, if it is at work in this process.
    fn current(&self, run_id: Uuid) -> Option<Current> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|current| current.run_id == run_id && current.is_at_work())
    }
}

async fn find(db: &mut PgConnection, request: &Request) -> sqlx::Result<Option<runs::Run>> {
    match request.request_id {
        Some(request_id) => runs::find_by_request(db, request_id).await,
        None => Ok(None),
    }
}

impl Current {
    /// False once it has ended, or was cut off.
    fn is_at_work(&self) -> bool {
        self.live.has_changed().is_ok() && self.live.borrow().ended.is_none()
    }

    /// The figures at the end of the run, or so far where it takes longer.
    async fn wait(mut self, until: tokio::time::Instant) -> Result<Snapshot, Error> {
        let ended = tokio::time::timeout_at(until, self.live.wait_for(|live| live.ended.is_some())).await;
        let cut_off = matches!(ended, Ok(Err(_)));
        drop(ended);
        if cut_off {
            return Err(Error::Stopping);
        }
        let live = self.live.borrow().clone();
        let (end, status) = live.ended.unwrap_or_else(|| (Instant::now(), RunStatus::Running));
        let took = end.duration_since(self.started);
        Ok(Snapshot {
            run_id: self.run_id,
            status,
            figures: live.figures,
            duration_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
        })
    }
}

impl Snapshot {
    /// A run that was cut short is an error and not an answer.
    fn answer(self) -> Result<Answer, Error> {
        match self.status {
            RunStatus::Running | RunStatus::Finished => Ok(Answer::Run(self)),
            RunStatus::Failed => Err(Error::RunFailed(self.run_id)),
        }
    }
}

impl From<runs::Run> for Snapshot {
    fn from(run: runs::Run) -> Self {
        let runs::Run { run_id, status, figures, duration_ms } = run;
        Self { run_id, status, figures, duration_ms }
    }
}
