//! One reconciliation at a time, over all replicas: begins it, hands out what it found, ends with the server.

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
    drift::Drift,
    work::{Context, Live, work},
};
use crate::{
    app::stripe_events,
    domain::reconciliation::{Findings, Scope, Status},
    error::Error,
    payments::{Payments, books::Books, pace::Pace},
    store::{
        lease::{self, Lease},
        reconciliations::{self, Begun, Reconciliation},
    },
};

/// A call of Reconcile.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A repeat returns the first answer, and begins again where it was cut short.
    pub request_id: Option<Uuid>,
    /// What is compared.
    pub scope: Scope,
    /// Whether what can be repaired is.
    pub repair: bool,
    /// On whose behalf.
    pub actor: String,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A reconciliation, at its good end or so far.
    Found(Snapshot),
    /// Another one was at work; nothing was done.
    AlreadyRunning,
}

/// A reconciliation at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its id.
    pub reconciliation_id: Uuid,
    /// How it is.
    pub status: Status,
    /// What it found.
    pub findings: Findings,
    /// How long it has taken.
    pub duration_ms: i64,
}

/// Reconciles. That does not depend on who called for it; it ends with the server.
pub struct Reconciler {
    pool: PgPool,
    payments: Arc<dyn Payments>,
    books: Arc<dyn Books>,
    events: stripe_events::Context,
    pace: Arc<Pace>,
    drift: Drift,
    shutdown: CancellationToken,
    killed: CancellationToken,
    tasks: TaskTracker,
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    reconciliation_id: Uuid,
    started: Instant,
    live: watch::Receiver<Live>,
}

impl Reconciler {
    /// Stops after `shutdown`.
    pub fn new(
        pool: PgPool,
        payments: Arc<dyn Payments>,
        books: Arc<dyn Books>,
        events: stripe_events::Context,
        pace: Arc<Pace>,
        drift: Drift,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            pool,
            payments,
            books,
            events,
            pace,
            drift,
            shutdown,
            killed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            current: Mutex::default(),
        }
    }

    /// When dropped, a reconciliation ends where it is.
    pub fn kill_guard(&self) -> DropGuard {
        self.killed.clone().drop_guard()
    }

    /// Waits until what was in hand is done. To be called after `shutdown`.
    pub async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Begins one, named `reconciliation_id`, or again the one of the request where it was cut short, and waits
    /// for its end, until `wait_until` at most.
    pub async fn reconcile(
        &self,
        request: Request,
        reconciliation_id: Uuid,
        wait_until: tokio::time::Instant,
    ) -> Result<Answer, Error> {
        if self.shutdown.is_cancelled() {
            return Err(Error::Stopping);
        }
        if let Some(earlier) = self.earlier(&request).await?
            && (earlier.status == Status::Finished || self.current(earlier.reconciliation_id).is_some())
        {
            return self.follow(&request, earlier, wait_until).await;
        }
        // A connection of its own, which the pool does not take back: the lease lives as long as it does.
        let mut connection = db::acquire(&self.pool).await?.detach();
        if !lease::try_take(&mut connection, Lease::Reconciliation).await? {
            drop(connection);
            return match self.earlier(&request).await? {
                Some(earlier) => self.follow(&request, earlier, wait_until).await,
                None => Ok(Answer::AlreadyRunning),
            };
        }
        reconciliations::fail_orphans(&mut connection).await?;
        let actor = request.actor.clone();
        let begun = match find(&mut connection, &request).await? {
            None => {
                let begun = Begun { reconciliation_id, scope: request.scope, repair: request.repair };
                reconciliations::insert(&mut connection, &begun, request.request_id).await?;
                begun
            }
            Some(earlier) if earlier.status == Status::Finished => {
                lease::give_back(connection, Lease::Reconciliation).await?;
                return Snapshot::from(earlier).answer();
            }
            Some(earlier) => reconciliations::restart(&mut connection, earlier.reconciliation_id).await?,
        };
        self.spawn(connection, begun, actor).wait(wait_until).await?.answer()
    }

    fn spawn(&self, lease: PgConnection, begun: Begun, actor: String) -> Current {
        let reconciliation_id = begun.reconciliation_id;
        let (sender, live) = watch::channel(Live::default());
        let current = Current { reconciliation_id, started: Instant::now(), live };
        let context = Context {
            pool: self.pool.clone(),
            payments: self.payments.clone(),
            books: self.books.clone(),
            events: self.events.clone(),
            pace: self.pace.clone(),
            shutdown: self.shutdown.clone(),
            begun,
            actor,
            live: sender,
        };
        let (killed, drift, pool) = (self.killed.clone(), self.drift.clone(), self.pool.clone());
        let span = tracing::info_span!("reconcile", %reconciliation_id);
        let task = async move {
            let done = async {
                let status = work(&context, lease).await;
                if let Err(error) = drift.refresh(&pool).await {
                    tracing::debug!(%error, "the drift could not be read");
                }
                context.live.send_modify(|live| live.ended = Some((Instant::now(), status)));
            };
            if killed.run_until_cancelled(done).await.is_none() {
                tracing::warn!(%reconciliation_id, "a reconciliation was cut off with the server");
            }
        };
        self.tasks.spawn(task.instrument(span));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current.clone());
        current
    }

    async fn earlier(&self, request: &Request) -> Result<Option<Reconciliation>, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        Ok(find(&mut connection, request).await?)
    }

    /// What was found by one that was begun before: followed to its end if it is at work in this process.
    async fn follow(
        &self,
        request: &Request,
        earlier: Reconciliation,
        wait_until: tokio::time::Instant,
    ) -> Result<Answer, Error> {
        if let Some(current) = self.current(earlier.reconciliation_id) {
            return current.wait(wait_until).await?.answer();
        }
        let ended = match earlier.status {
            // It may have ended since it was read.
            Status::Running => self.earlier(request).await?.unwrap_or(earlier),
            _ => earlier,
        };
        Snapshot::from(ended).answer()
    }

    /// The reconciliation, if it is at work in this process.
    fn current(&self, reconciliation_id: Uuid) -> Option<Current> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|current| current.reconciliation_id == reconciliation_id && current.is_at_work())
    }
}

async fn find(db: &mut PgConnection, request: &Request) -> sqlx::Result<Option<Reconciliation>> {
    match request.request_id {
        Some(request_id) => reconciliations::find_by_request(db, request_id).await,
        None => Ok(None),
    }
}

impl Current {
    /// False once it has ended, or was cut off.
    fn is_at_work(&self) -> bool {
        self.live.has_changed().is_ok() && self.live.borrow().ended.is_none()
    }

    /// What it found at its end, or so far where it takes longer.
    async fn wait(mut self, until: tokio::time::Instant) -> Result<Snapshot, Error> {
        let ended = tokio::time::timeout_at(until, self.live.wait_for(|live| live.ended.is_some())).await;
        let cut_off = matches!(ended, Ok(Err(_)));
        drop(ended);
        if cut_off {
            return Err(Error::Stopping);
        }
        let live = self.live.borrow().clone();
        let (end, status) = live.ended.unwrap_or_else(|| (Instant::now(), Status::Running));
        Ok(Snapshot {
            reconciliation_id: self.reconciliation_id,
            status,
            findings: live.findings,
            duration_ms: i64::try_from(end.duration_since(self.started).as_millis()).unwrap_or(i64::MAX),
        })
    }
}

impl Snapshot {
    /// One that was cut short is an error and not an answer.
    fn answer(self) -> Result<Answer, Error> {
        match self.status {
            Status::Running | Status::Finished => Ok(Answer::Found(self)),
            Status::Failed => Err(Error::ReconciliationFailed(self.reconciliation_id)),
        }
    }
}

impl From<Reconciliation> for Snapshot {
    fn from(earlier: Reconciliation) -> Self {
        let Reconciliation { reconciliation_id, status, findings, duration_ms } = earlier;
        Self { reconciliation_id, status, findings, duration_ms }
    }
}
