//! Records calls that are answered. An admitted call is answered: if its event is not committed in time, the
//! answer goes out and the event, the same each time, is sent until it is. Whoever takes a call first takes a
//! place among the events under way, so that their number is bounded; without a free one the call is refused
//! before it takes a unit.

use std::{sync::Arc, time::Duration};

use nexus_proto::usage::v1::UsageEvent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{backend::Backend, error::Error};

/// Events that may be under way at once.
const PLACES: usize = 10_000;

/// Events under way.
pub struct Recorder {
    backend: Arc<Backend>,
    places: Arc<Semaphore>,
    under_way: TaskTracker,
    /// How long an answer waits for its event.
    patience: Duration,
}

/// A place for an event.
pub struct Place(OwnedSemaphorePermit);

impl Recorder {
    /// None under way.
    pub fn new(backend: Arc<Backend>, patience: Duration) -> Self {
        Self { backend, places: Arc::new(Semaphore::new(PLACES)), under_way: TaskTracker::new(), patience }
    }

    /// Takes a place, or refuses the call.
    pub fn reserve(&self) -> Result<Place, Error> {
        let permit = self.places.clone().try_acquire_owned();
        permit.map(Place).map_err(|_| Error::unavailable("too many events are under way"))
    }

    /// Returns once the event is committed, or goes on without the caller when that takes too long.
    pub async fn record(&self, place: Place, event: UsageEvent) {
        let backend = self.backend.clone();
        let work = async move {
            let _held_until_done = place.0;
            let (eco_id, event_id) = (event.eco_id.clone(), event.event_id.clone());
            if let Err(error) = backend.record(event).await {
                // What usage-svc refuses for good will not be taken later: say what is not metered.
                tracing::error!(%error, eco_id, event_id, "an answered call was refused by the meter");
            }
        };
        let task = self.under_way.spawn(work.in_current_span());
        if tokio::time::timeout(self.patience, task).await.is_err() {
            tracing::warn!("the call is answered before its event is committed");
        }
    }

    /// Waits until every event is committed. No call may be taken any more.
    pub async fn drain(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }
}
