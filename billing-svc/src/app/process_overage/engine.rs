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
    ChargeContext, Pace,
    run::{Live, Run},
};
use crate::{
    domain::run::Figures,
    error::Error,
    payments::Payments,
    store::{lease, runs},
};

/// A call of ProcessOverage.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A repeat returns the first run's figures.
    pub request_id: Option<Uuid>,
    /// Only these accounts; `None`: all.
    pub accounts: Option<Vec<String>>,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A run, at its end or so far.
    Run(Snapshot),
    /// Another run was at work; nothing was done.
    AlreadyRunning,
}

/// A run at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The run.
    pub run_id: Uuid,
    /// Its figures.
    pub figures: Figures,
    /// Whether it goes on.
    pub running: bool,
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
        pace: Pace,
        concurrency: usize,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            pool,
            payments,
            pace: Arc::new(pace),
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

    /// Begins a run, named `run_id`, and waits for its end, until `wait_until` at most.
    pub async fn process(
        &self,
        request: Request,
        run_id: Uuid,
        wait_until: tokio::time::Instant,
    ) -> Result<Answer, Error> {
        if self.shutdown.is_cancelled() {
            return Err(Error::Stopping);
        }
        if let Some(run) = self.earlier(&request).await? {
            return self.follow(run, wait_until).await;
        }
        // A connection of its own, which the pool does not take back: the lease lives as long as it does.
        let mut connection = self.pool.acquire().await?.detach();
        if !lease::try_run(&mut connection).await? {
            return match self.earlier(&request).await? {
                Some(run) => self.follow(run, wait_until).await,
                None => Ok(Answer::AlreadyRunning),
            };
        }
        let orphans = runs::fail_orphans(&mut connection).await?;
        if orphans > 0 {
            tracing::warn!(orphans, "a run before this one was cut off");
        }
        let begun =
            runs::insert(&mut connection, run_id, request.request_id, request.accounts.as_deref()).await;
        match begun {
            Ok(()) => {}
            Err(e) if db::violates(&e, "eco_overage_runs_request_id_key") => {
                return match self.earlier(&request).await? {
                    Some(run) => self.follow(run, wait_until).await,
                    None => Err(Error::Database(e)),
                };
            }
            Err(e) => return Err(Error::Database(e)),
        }
        let current = self.spawn(connection, run_id, request.accounts);
        Ok(Answer::Run(current.wait(wait_until).await?))
    }

    fn spawn(&self, lease: PgConnection, run_id: Uuid, accounts: Option<Vec<String>>) -> Current {
        let (sender, live) = watch::channel(Live::default());
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
            accounts,
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
        let Some(request_id) = request.request_id else { return Ok(None) };
        let mut connection = self.pool.acquire().await?;
        Ok(runs::find_by_request(&mut connection, request_id).await?)
    }

    /// The figures of a run that was begun before: followed to its end if it is at work in this process.
    async fn follow(&self, run: runs::Run, wait_until: tokio::time::Instant) -> Result<Answer, Error> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Answer::Run(match current.filter(|current| current.run_id == run.run_id) {
            Some(current) if run.running => current.wait(wait_until).await?,
            _ => Snapshot {
                run_id: run.run_id,
                figures: run.figures,
                running: run.running,
                duration_ms: run.duration_ms,
            },
        }))
    }
}

impl Current {
    /// The figures at the end of the run, or so far where it takes longer.
    async fn wait(mut self, until: tokio::time::Instant) -> Result<Snapshot, Error> {
        let ended = tokio::time::timeout_at(until, self.live.wait_for(|live| live.ended.is_some())).await;
        let cut_off = matches!(ended, Ok(Err(_)));
        drop(ended);
        if cut_off {
            return Err(Error::Stopping);
        }
        let live = self.live.borrow().clone();
        let took = live.ended.unwrap_or_else(Instant::now).duration_since(self.started);
        Ok(Snapshot {
            run_id: self.run_id,
            figures: live.figures,
            running: live.ended.is_none(),
            duration_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
        })
    }
}
