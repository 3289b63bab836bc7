//! Delivers usage events in the background: `track` never waits, and what it took is sent until usage-svc has
//! acknowledged it, the same event each time, so that it is counted once whatever breaks on the way.
//!
//! | module | what it does |
//! |---|---|
//! | [`builder`] | settings |
//! | `worker` | the background task: gathers, keeps on disk, sends, settles |
//! | `disk` | the disk buffer in the worker's hands |
//! | `outbox` | the batches on their way, and the pause after a failure; pure |
//! | `batch`, `send` | a batch; one call and what its answer means |
//! | [`stats`] | what became of everything |

mod batch;
pub mod builder;
mod disk;
mod outbox;
mod send;
pub mod stats;
mod worker;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nexus_proto::usage::v1::{EventOutcome, UsageEvent};
use prost_types::Timestamp;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::Instant,
};
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::{clock::ServerClock, credentials::Credentials};
use builder::Builder;
use stats::{Counters, Stats, add, subtract};

/// Why an event was not taken. It is counted in [`Stats`] and will not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// More events wait than the queue holds.
    #[error("the queue of usage events is full")]
    QueueFull,
    /// The tracker has been shut down.
    #[error("the tracker is shut down")]
    Closed,
}

/// The tracker has ended, so that nothing more is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tracker is shut down")]
pub struct Closed;

/// How a tracker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Events that were taken and are lost: neither acknowledged nor on disk. The server may have counted some
    /// of them, where its answer did not come in time.
    pub undelivered: u64,
    /// Events in the disk buffer; the next tracker on that file delivers them.
    pub on_disk: u64,
    /// All figures at the end.
    pub stats: Stats,
}

/// What goes to the worker, in order.
enum Item {
    /// An event, and who waits for its outcome.
    Event(UsageEvent, Option<Box<Waiter>>),
    Flush(oneshot::Sender<()>),
}

/// Who waits for an event's outcome.
struct Waiter {
    decided: oneshot::Sender<EventOutcome>,
    /// What the call carries that begins with this event.
    metadata: MetadataMap,
}

/// Takes events and delivers them. Clones are the same tracker. When the last one is dropped without
/// [`Tracker::shutdown`], the worker still tries for 30 seconds.
#[derive(Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
}

struct Shared {
    items: mpsc::Sender<Item>,
    /// The deadline of a shutdown.
    stop: watch::Sender<Option<Instant>>,
    /// Set when the worker has ended.
    end: watch::Receiver<Option<Report>>,
    counters: Arc<Counters>,
    clock: ServerClock,
}

impl Tracker {
    /// A tracker that delivers to the usage-svc at this address (`http://localhost:50051`).
    pub fn builder(address: &str, credentials: Credentials) -> Builder {
        Builder::new(address, credentials)
    }

    /// Takes an event, to be delivered in the background. It never waits, and never panics.
    ///
    /// An event without an id gets one (UUIDv7), one without a time the time of its UUIDv7 or else now, by the
    /// server's clock; both are kept on every retry. What the server refuses for good is counted in [`Stats`] and logged.
    pub fn track(&self, mut event: UsageEvent) -> Result<(), Dropped> {
        stamp(&mut event, self.shared.clock.now().into());
        let counters = &self.shared.counters;
        // Before it is sent, so that the worker never takes away what was not added yet.
        add(&counters.queued, 1);
        match self.shared.items.try_send(Item::Event(event, None)) {
            Ok(()) => {
                add(&counters.tracked, 1);
                Ok(())
            }
            Err(refused) => {
                subtract(&counters.queued, 1);
                Err(self.dropped(&refused))
            }
        }
    }

    /// Takes a place in the queue for an event that is to come, so that a call is refused before it is served
    /// and not recorded in vain. A place that is dropped is free again; a shutdown waits for those that are held.
    pub fn reserve(&self) -> Result<Place, Dropped> {
        match self.shared.items.clone().try_reserve_owned() {
            Ok(permit) => {
                let (counters, clock) = (self.shared.counters.clone(), self.shared.clock.clone());
                Ok(Place { permit, counters, clock, metadata: MetadataMap::new() })
            }
            Err(refused) => Err(self.dropped(&refused)),
        }
    }

    /// Counts what is not taken.
    fn dropped<T>(&self, refused: &TrySendError<T>) -> Dropped {
        let counters = &self.shared.counters;
        let (counter, why) = match refused {
            TrySendError::Full(_) => (&counters.dropped_queue_full, Dropped::QueueFull),
            TrySendError::Closed(_) => (&counters.dropped_closed, Dropped::Closed),
        };
        add(counter, 1);
        why
    }

    /// Sends what waits, now, and returns when everything that was tracked before has been acknowledged (or
    /// refused for good; see [`Stats`]). While usage-svc is away it waits: put a timeout around it.
    pub async fn flush(&self) -> Result<(), Closed> {
        let (done, acknowledged) = oneshot::channel();
        self.shared.items.send(Item::Flush(done)).await.map_err(|_| Closed)?;
        acknowledged.await.map_err(|_| Closed)
    }

    /// Takes no more events, delivers what it has until the deadline, and says what is left. Called again, it
    /// returns the same report.
    pub async fn shutdown(&self, deadline: Duration) -> Report {
        let until = Instant::now() + deadline;
        self.shared.stop.send_if_modified(|stop| stop.is_none() && stop.replace(until).is_none());
        let mut end = self.shared.end.clone();
        let ended = end.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        // Without a report the worker went down with its runtime.
        ended.unwrap_or_else(|| report(&self.shared.counters))
    }

    /// The server's clock, as far as it is known.
    pub fn clock(&self) -> &ServerClock {
        &self.shared.clock
    }

    /// Returns once no event can be delivered, as no server answers, or none without its database: at once where that is
    /// so already. What is tracked waits then.
    pub async fn away(&self) {
        self.shared.counters.away().await;
    }

    /// What became of everything so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }
}

/// A place in the queue; see [`Tracker::reserve`].
#[must_use]
pub struct Place {
    permit: mpsc::OwnedPermit<Item>,
    counters: Arc<Counters>,
    clock: ServerClock,
    metadata: MetadataMap,
}

impl Place {
    /// Metadata for the call that delivers the event, e.g. the trace that it belongs to; of events that go out
    /// together, the first one's.
    pub fn metadata(mut self, metadata: MetadataMap) -> Self {
        self.metadata = metadata;
        self
    }

    /// Takes an event, as [`Tracker::track`] does, and tells what becomes of it.
    pub fn track(self, mut event: UsageEvent) -> Delivery {
        stamp(&mut event, self.clock.now().into());
        let (decided, outcome) = oneshot::channel();
        add(&self.counters.queued, 1);
        add(&self.counters.tracked, 1);
        self.permit.send(Item::Event(event, Some(Box::new(Waiter { decided, metadata: self.metadata }))));
        Delivery(outcome)
    }
}

/// An event on its way. It is delivered whether somebody waits or not.
#[must_use]
pub struct Delivery(oneshot::Receiver<EventOutcome>);

impl Delivery {
    /// Returns when the server has decided: the event is committed (accepted, or a duplicate), or refused for
    /// good. While usage-svc is away it waits: put a timeout around it.
    pub async fn outcome(self) -> Result<EventOutcome, Closed> {
        self.0.await.map_err(|_| Closed)
    }
}

/// The figures of an end: what is still in memory is lost.
fn report(counters: &Counters) -> Report {
    let lost = stats::get(&counters.queued);
    counters.queued.store(0, std::sync::atomic::Ordering::Relaxed);
    add(&counters.undelivered, usize::try_from(lost).unwrap_or(usize::MAX));
    let stats = counters.snapshot();
    Report { undelivered: stats.undelivered, on_disk: stats.on_disk, stats }
}

/// Gives an event the identity that it keeps.
fn stamp(event: &mut UsageEvent, now: SystemTime) {
    if event.event_time.is_none() {
        let own = event.event_id.parse::<Uuid>().ok().filter(|id| id.get_version_num() == 7);
        let own = own.and_then(|id| id.get_timestamp()).map(|at| at.to_unix());
        let own = own.map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos));
        event.event_time = Some(Timestamp::from(own.unwrap_or(now)));
    }
    if event.event_id.is_empty() {
        event.event_id = Uuid::now_v7().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_stamped_where_it_is_not() {
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut bare = UsageEvent::default();
        stamp(&mut bare, now);
        assert_eq!(bare.event_time, Some(Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 }));
        assert_eq!(bare.event_id.parse::<Uuid>().map(|id| id.get_version_num()), Ok(7));

        let mut stamped = bare.clone();
        stamp(&mut stamped, now + Duration::from_secs(1));
        assert_eq!(stamped, bare, "once");

        let id = "018bcfe5-687b-7000-8000-000000000000"; // 1,700,000,000.123
        let mut known = UsageEvent { event_id: id.to_owned(), ..UsageEvent::default() };
        stamp(&mut known, now + Duration::from_secs(86_400));
        assert_eq!(known.event_id, id);
        assert_eq!(known.event_time, bare.event_time, "the time that its id tells");
    }
}
