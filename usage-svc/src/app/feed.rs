//! The change feed: what the database says has changed, to whoever caches it.
//!
//! One connection of its own listens. It proves that it hears by sending itself a notification four times a
//! second, over the way that all others take: notifications arrive in the order of their commits, so that
//! whatever was committed before the last one that came back has been heard. A connection that was lost may
//! have missed something; every new one begins by declaring everything changed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use nexus_core::id::EcoId;
use nexus_kit::{
    config::DbArgs,
    db::{self, Role},
};
use sqlx::{
    Connection, Executor, PgConnection,
    postgres::{PgListener, PgNotification},
};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{clock::BootTime, error::StartError, store};

/// How often it sends itself a notification.
const BEAT: Duration = Duration::from_millis(250);
/// While it is heard within this, what is remembered holds.
const HEARD: Duration = Duration::from_secs(1);
/// A connection that was silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(3);
/// Pause before the next connection is tried.
const RECONNECT: Duration = Duration::from_millis(250);
/// Changes that a slow subscriber may be behind; then it takes everything as changed.
const CAPACITY: usize = 4096;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// Anything may have: changes were missed.
    Everything,
    /// An API key.
    Key(String),
    /// An account or its subscription.
    Account(EcoId),
    /// The plans or their prices.
    Plans,
    /// Somebody is short of this account's units: who holds some gives them back.
    Recall(EcoId),
    /// Units of this account came back.
    Returned(EcoId),
}

impl Change {
    /// Of a notification's payload; `None`: of a kind that another version has.
    fn parse(payload: &str) -> Option<Self> {
        if payload == "plans" {
            return Some(Self::Plans);
        }
        let (kind, name) = payload.split_once(':')?;
        let account = || EcoId::parse(name).ok();
        match kind {
            "key" => Some(Self::Key(name.to_owned())),
            "account" => account().map(Self::Account),
            "recall" => account().map(Self::Recall),
            "returned" => account().map(Self::Returned),
            _ => None,
        }
    }
}

/// The feed, as its subscribers see it.
#[derive(Debug)]
pub struct Feed {
    changes: broadcast::Sender<Change>,
    /// When the newest notification to ourselves that came back was sent, in nanoseconds of [`BootTime`].
    heard: AtomicU64,
    /// The last connection could not be made.
    refused: AtomicBool,
}

impl Feed {
    /// For how long a change may have gone unheard.
    pub fn unheard_for(&self) -> Duration {
        BootTime::now().since(BootTime::at_nanos(self.heard.load(Ordering::Acquire)))
    }

    /// Whether what is remembered may still be taken as true: a change would have been heard by now.
    pub fn is_heard(&self) -> bool {
        self.heard_within(HEARD)
    }

    /// Whether every change that is older than this has been heard.
    pub fn heard_within(&self, duration: Duration) -> bool {
        self.unheard_for() <= duration
    }

    /// Whether the database takes no connections of the feed, though it has room for some.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// The changes from now on.
    pub fn subscribe(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    fn publish(&self, change: Change) {
        tracing::debug!(?change, subscribers = self.changes.receiver_count(), "change");
        // Without subscribers there is nobody to tell.
        let _ = self.changes.send(change);
    }
}

/// One subscriber's changes.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Change>);

impl Changes {
    /// The next change; `None` after the end of the feed. It may be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Change> {
        match self.0.recv().await {
            Ok(change) => Some(change),
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "a subscriber of the change feed fell behind");
                Some(Change::Everything)
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// Starts the feed, which listens until `stop`. That the database is away does not end it.
pub fn start(args: &DbArgs, stop: CancellationToken) -> Result<(Arc<Feed>, JoinHandle<()>), StartError> {
    let args = DbArgs { database_max_connections: 1, ..args.clone() };
    db::options(&args.database_url)?;
    let feed = Arc::new(Feed {
        changes: broadcast::Sender::new(CAPACITY),
        heard: AtomicU64::new(0),
        refused: AtomicBool::new(false),
    });
    let task = tokio::spawn(run(feed.clone(), args, stop));
    Ok((feed, task))
}

async fn run(feed: Arc<Feed>, args: DbArgs, stop: CancellationToken) {
    // So that notifications to ourselves wake nobody else.
    let own = format!("nexus_feed_{}", Uuid::new_v4().simple());
    let mut down = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            ended = listen(&feed, &args, &own, &mut down) => {
                if let Err(reason) = ended {
                    feed.refused.store(reason.is_refusal(), Ordering::Relaxed);
                    if !down {
                        tracing::warn!(%reason, "the change feed is not heard");
                        down = true;
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RECONNECT) => {}
        }
    }
}

/// Why a connection of the feed ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Url(#[from] db::BadUrl),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("the connection was lost")]
    Lost,
    #[error("the connection went silent")]
    Silent,
}

impl Ended {
    /// Whether the database took no connection. One that has none left answers those who have one.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(error) if db::is_away(error) && !db::is_full(error))
    }
}

/// Listens until the connection ends.
async fn listen(feed: &Feed, args: &DbArgs, own: &str, down: &mut bool) -> Result<(), Ended> {
    if *down {
        // First without a pool, which tries for seconds and does not say why in vain.
        let probe = timeout(SILENCE, PgConnection::connect_with(&db::options(&args.database_url)?)).await;
        probe.map_err(|_| Ended::Silent)??.close().await?;
    }
    // A pool of its own each time: a connection that went silent keeps its place in the old one.
    let pool = db::pool(args, Role::Usage)?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    // A notification is no data: its commit need not wait for the disk.
    (&mut listener).execute("set synchronous_commit = off").await?;
    listener.listen_all([store::changes::CHANNEL, own]).await?;
    feed.refused.store(false, Ordering::Relaxed);
    feed.publish(Change::Everything);

    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let connected = BootTime::now();
    loop {
        tokio::select! {
            notification = listener.try_recv() => {
                if hear(feed, own, &notification?.ok_or(Ended::Lost)?) && *down {
                    tracing::info!("the change feed is heard again");
                    *down = false;
                }
            }
            _ = beat.tick() => {
                let now = BootTime::now();
                if now.since(connected).min(feed.unheard_for()) > SILENCE {
                    return Err(Ended::Silent);
                }
                let sent = now.nanos().to_string();
                timeout(SILENCE, store::changes::notify(&mut listener, own, &sent))
                    .await
                    .map_err(|_| Ended::Silent)??;
            }
        }
    }
}

/// Takes a notification; whether it was one of ours to ourselves.
fn hear(feed: &Feed, own: &str, notification: &PgNotification) -> bool {
    let payload = notification.payload();
    if notification.channel() == own {
        // Nobody else knows this channel; a text that is no number proves nothing.
        return payload.parse().map(|sent| feed.heard.fetch_max(sent, Ordering::AcqRel)).is_ok();
    }
    match Change::parse(payload) {
        Some(change) => feed.publish(change),
        None => tracing::debug!(payload, "a change of an unknown kind"),
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_read_and_those_of_other_versions_passed_over() {
        let account = || EcoId::parse("eco_a:b").expect("an id");
        for (payload, change) in [
            ("plans", Some(Change::Plans)),
            ("key:eco_api_x", Some(Change::Key("eco_api_x".to_owned()))),
            ("account:eco_a:b", Some(Change::Account(account()))),
            ("recall:eco_a:b", Some(Change::Recall(account()))),
            ("returned:eco_a:b", Some(Change::Returned(account()))),
            ("account:nobody", None),
            ("colour:blue", None),
            ("", None),
        ] {
            assert_eq!(Change::parse(payload), change, "{payload}");
        }
    }
}
