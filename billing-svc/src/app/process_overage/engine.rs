//! One run at a time, over all replicas: begins it, hands out its figures, ends with the server.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures::Stream;

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
    run::{Live, Run as Work},
    together::Together,
};
use crate::{
    domain::{
        charge::Target,
        run::{self, AccountError, Figures, MAX_ERRORS, RunStatus},
    },
    error::Error,
    payments::{Payments, pace::Pace},
    store::{
        identity,
        lease::{self, Lease},
        run_accounts,
        runs::{self, Begun},
    },
};

/// Between two looks at a run that is watched.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A call of ProcessOverage.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A repeat returns the first run's figures, and goes on with it where it was cut short.
    pub request_id: Option<Uuid>,
    /// Only these accounts; `None`: all.
    pub accounts: Option<Vec<String>>,
    /// Whether to answer as soon as the run has begun.
    pub return_at_once: bool,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A run, at its good end or so far, with the first of its errors.
    Run(Snapshot, Vec<AccountError>),
    /// Another run was at work, this one if it is known; nothing was done.
    AlreadyRunning(Option<Uuid>),
}

/// A run at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The run.
    pub run_id: Uuid,
    /// How far it is.
    pub status: RunStatus,
    /// Its figures.
    pub figures: Figures,
    /// How long it has taken.
    pub duration_ms: i64,
    /// Whether its process ended without a word.
    pub cut_off: bool,
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
        let wait_until = if request.return_at_once { tokio::time::Instant::now() } else { wait_until };
        if let Some(run) = self.earlier(&request).await?
            && (run.status == RunStatus::Finished || self.current(run.run_id).is_some())
        {
            return self.follow(run, wait_until).await;
        }
        // A connection of its own, which the pool does not take back: the lease lives as long as it does.
        let mut connection = db::acquire(&self.pool).await?.detach();
        // Only who has the lease knows that nobody is at work on a run which is not done.
        if !lease::try_take(&mut connection, Lease::Run).await? {
            drop(connection);
            return match self.earlier(&request).await? {
                Some(run) => self.follow(run, wait_until).await,
                None => self.already_running().await,
            };
        }
        if !identity::is_known(&mut connection).await? {
            lease::give_back(connection, Lease::Run).await?;
            return Err(Error::ReconcileRequired);
        }
        let orphans = runs::fail_orphans(&mut connection).await?;
        if orphans > 0 {
            tracing::warn!(orphans, "a run before this one was cut off");
        }
        let begun = match find(&mut connection, &request).await? {
            None => runs::insert(&mut connection, run_id, request.request_id, request.accounts).await?,
            Some(run) if run.status == RunStatus::Finished => {
                lease::give_back(connection, Lease::Run).await?;
                return self.answer(Snapshot::from(run)).await;
            }
            Some(run) => runs::resume(&mut connection, run.run_id).await?,
        };
        let current = self.spawn(connection, begun);
        self.answer(current.wait(wait_until).await?).await
    }

    /// A run as it is now, and how it goes on: a look twice a second where something has changed, the end as soon as
    /// it is there. A run of another process is looked at by what it keeps of itself; one that was cut off ends, too.
    /// Whoever stops looking costs nothing more.
    pub async fn watch(
        self: Arc<Self>,
        run_id: Uuid,
    ) -> Result<impl Stream<Item = Result<Snapshot, Error>> + Send + use<>, Error> {
        let first = self.look(run_id).await?;
        let looks =
            futures::stream::unfold((self, Some(first), None), move |(engine, due, last)| async move {
                let snapshot = match due {
                    Some(first) => Ok(first),
                    None => engine.next_look(run_id, last?).await?,
                };
                let last = snapshot.as_ref().ok().copied();
                Some((snapshot, (engine, None, last)))
            });
        Ok(looks)
    }

    /// The next look that tells something new; `None`: the last one was the end.
    async fn next_look(&self, run_id: Uuid, last: Snapshot) -> Option<Result<Snapshot, Error>> {
        if !last.is_at_work() {
            return None;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.until_ended(run_id) => {}
                () = self.shutdown.cancelled() => return Some(Err(Error::Stopping)),
            }
            match self.look(run_id).await {
                Ok(now) if now.is_at_work() && now.figures == last.figures => {}
                looked => return Some(looked),
            }
        }
    }

    /// Waits for the end of a run of this process.
    async fn until_ended(&self, run_id: Uuid) {
        match self.current(run_id) {
            // Cut off: its row tells.
            Some(mut current) => drop(current.live.wait_for(|live| live.ended.is_some()).await),
            None => std::future::pending().await,
        }
    }

    /// A run as it is now.
    pub async fn look(&self, run_id: Uuid) -> Result<Snapshot, Error> {
        if let Some(current) = self.current(run_id) {
            return Ok(current.now());
        }
        let mut connection = db::acquire(&self.pool).await?;
        let run = runs::get(&mut connection, run_id).await?.ok_or(Error::RunNotFound(run_id))?;
        Ok(Snapshot::from(run))
    }

    /// A run that was cut short is an error and not an answer.
    async fn answer(&self, run: Snapshot) -> Result<Answer, Error> {
        if run.status == RunStatus::Failed {
            return Err(Error::RunFailed(run.run_id));
        }
        let mut connection = db::acquire(&self.pool).await?;
        let errors = run_accounts::errors(&mut connection, run.run_id, "", MAX_ERRORS as i64).await?;
        Ok(Answer::Run(run, errors))
    }

    /// What charging needs outside of runs: for settlements.
    pub fn outside_runs(&self) -> ChargeContext {
        ChargeContext {
            pool: self.pool.clone(),
            payments: self.payments.clone(),
            pace: self.pace.clone(),
            run_id: None,
            target: Target::Upcoming,
            halt: self.killed.clone(),
            shutdown: self.shutdown.clone(),
            together: Arc::new(Together::default()),
        }
    }

    fn spawn(&self, lease: PgConnection, begun: Begun) -> Current {
        let run_id = begun.run_id;
        let (sender, live) = watch::channel(Live { figures: begun.resumed.unwrap_or_default(), ended: None });
        let current = Current { run_id, started: Instant::now(), live };
        let run = Work {
            context: ChargeContext {
                run_id: Some(run_id),
                halt: CancellationToken::new(),
                ..self.outside_runs()
            },
            begun,
            concurrency: self.concurrency,
            live: sender,
            left: AtomicBool::new(false),
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

    async fn earlier(&self, request: &Request) -> Result<Option<run::Run>, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        Ok(find(&mut connection, request).await?)
    }

    async fn already_running(&self) -> Result<Answer, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        Ok(Answer::AlreadyRunning(runs::at_work(&mut connection).await?))
    }

    /// The figures of a run that was begun before: followed to its end if it is at work in this process.
    async fn follow(&self, run: run::Run, wait_until: tokio::time::Instant) -> Result<Answer, Error> {
        match self.current(run.run_id) {
            Some(current) => self.answer(current.wait(wait_until).await?).await,
            // It may have ended since it was read.
            None if run.status == RunStatus::Running => self.answer(self.look(run.run_id).await?).await,
            None => self.answer(Snapshot::from(run)).await,
        }
    }

    /// The run, if it is at work in this process.
    fn current(&self, run_id: Uuid) -> Option<Current> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|current| current.run_id == run_id && current.is_at_work())
    }
}

async fn find(db: &mut PgConnection, request: &Request) -> sqlx::Result<Option<run::Run>> {
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
        Ok(self.now())
    }

    fn now(&self) -> Snapshot {
        let live = *self.live.borrow();
        let (end, status) = live.ended.unwrap_or_else(|| (Instant::now(), RunStatus::Running));
        let took = end.duration_since(self.started);
        Snapshot {
            run_id: self.run_id,
            status,
            figures: live.figures,
            duration_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
            cut_off: false,
        }
    }
}

impl Snapshot {
    /// Whether it goes on, as far as can be seen.
    pub fn is_at_work(&self) -> bool {
        self.status == RunStatus::Running && !self.cut_off
    }
}

impl From<run::Run> for Snapshot {
    fn from(run: run::Run) -> Self {
        Self {
            run_id: run.run_id,
            status: run.status,
            figures: run.figures,
            duration_ms: run.duration_ms(),
            cut_off: run.is_cut_off(),
        }
    }
}
