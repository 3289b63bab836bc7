//! Takes events for recording and waits for their commit. One way for single events, batches and streams.
//!
//! Accounts are divided among the writers, so that no two of them touch the same counters. Events of accounts
//! of several writers are divided, too, and are answered when all parts are committed. Where a part fails, the
//! others may be counted: the same events sent again are counted once, whichever they were.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use nexus_core::id::EcoId;
use nexus_kit::auth::VerifiedKey;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Registry,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use tracing::Span;

use super::{
    account_room::{self, AccountRooms, Places},
    aside::Share,
    flush::FlushError,
};
use crate::{
    domain::event::{Event, Outcome},
    error::Error,
};

/// Events of one call for one writer, on their way to it.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) events: Vec<Event>,
    pub(super) answer: oneshot::Sender<Result<Vec<Outcome>, FlushError>>,
    /// The caller's span: the flush continues its trace.
    pub(super) span: Span,
    pub(super) arrived: Instant,
    /// Room in the queue, or among what is set aside, until the answer is out.
    pub(super) room: Taken,
    /// The same of its account's part, where a key sends them.
    pub(super) own: Option<Arc<Places>>,
}

/// A caller that went away does not hear its answer; its events are written all the same.
pub(super) fn answer(group: Vec<Submission>, result: Result<Vec<Outcome>, FlushError>) {
    let mut outcomes = result.map(Vec::into_iter);
    for submission in group {
        let count = submission.events.len();
        let own = outcomes.as_mut().map(|all| all.take(count).collect()).map_err(|e| *e);
        if submission.answer.send(own).is_err() {
            tracing::debug!(events = count, "a caller went away before its answer");
        }
    }
}

/// What of a call goes to one writer.
#[derive(Default)]
struct Part {
    events: Vec<Event>,
    /// Where they stood in the call.
    positions: Vec<usize>,
}

/// What events hold of the room for all.
#[derive(Debug)]
pub(super) struct Taken {
    _all: OwnedSemaphorePermit,
    /// Where a key sends them.
    _of_keys: Option<OwnedSemaphorePermit>,
}

impl Taken {
    /// Of room that has nothing to do with keys.
    pub(super) fn aside(all: OwnedSemaphorePermit) -> Self {
        Self { _all: all, _of_keys: None }
    }
}

/// Room in the queues for events that are to come.
#[derive(Debug)]
pub struct Room {
    all: OwnedSemaphorePermit,
    of_keys: Option<OwnedSemaphorePermit>,
    own: Option<Arc<Places>>,
}

impl Room {
    fn split(&mut self, events: usize) -> Option<Taken> {
        let of_keys = match &mut self.of_keys {
            Some(of_keys) => Some(of_keys.split(events)?),
            None => None,
        };
        Some(Taken { _all: self.all.split(events)?, _of_keys: of_keys })
    }
}

/// The bounded queues to the writers.
#[derive(Clone, Debug)]
pub struct Recorder {
    queues: Arc<[mpsc::Sender<Submission>]>,
    /// Room for events, in all queues together.
    room: Arc<Semaphore>,
    /// Of that, what keys may take together: the rest is for services, which record for everybody.
    of_keys: Arc<Semaphore>,
    /// For events that wait for room: as many again.
    waiting: Arc<Semaphore>,
    /// Of both, what each account may take by its keys.
    accounts: AccountRooms,
    capacity: usize,
    /// For events that are set aside: they have left the queues.
    aside: Share,
}

impl Recorder {
    /// Queues to so many writers, for so many events together, and their far ends.
    pub(super) fn new(writers: usize, capacity: usize) -> (Self, Vec<mpsc::Receiver<Submission>>) {
        // A submission has at least one event, so the semaphore is full first.
        let (queues, far_ends): (Vec<_>, _) = (0..writers).map(|_| mpsc::channel(capacity)).unzip();
        let room = Arc::new(Semaphore::new(capacity));
        let of_keys = Arc::new(Semaphore::new(account_room::of_all_keys(capacity)));
        let waiting = Arc::new(Semaphore::new(capacity));
        let (accounts, aside) = (AccountRooms::of(capacity), Share::of(capacity));
        (Self { queues: queues.into(), room, of_keys, waiting, accounts, capacity, aside }, far_ends)
    }

    pub(super) fn share(&self) -> Share {
        self.aside.clone()
    }

    /// Registers how full the queues are.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Records events; answers with an outcome for each, in their order, after the commit. The events are
    /// written also when the caller does not wait for the answer. Without room for them it fails at once; so it does
    /// where a key sends them, and its account has its part.
    pub async fn record(&self, events: Vec<Event>, key: Option<&VerifiedKey>) -> Result<Vec<Outcome>, Error> {
        let room = self.room_now(events.len(), key)?;
        self.submit(events, room).await
    }

    /// Room for so many events, or none. To be taken before they are looked at, which costs, too.
    pub fn room_now(&self, events: usize, key: Option<&VerifiedKey>) -> Result<Room, Error> {
        let places = self.places(events)?;
        let own = match key {
            Some(key) => Some(self.accounts.get(&key.eco_id).take(places).ok_or(Error::Overloaded)?),
            None => None,
        };
        self.common_now(places, own.map(Arc::new)).map_err(|_| Error::Overloaded)
    }

    /// Room among all, and among keys where it is a key's; else its own is given back.
    fn common_now(&self, places: u32, own: Option<Arc<Places>>) -> Result<Room, Option<Arc<Places>>> {
        let take = |of: &Arc<Semaphore>| of.clone().try_acquire_many_owned(places).ok();
        let of_keys = own.as_ref().map(|_| take(&self.of_keys));
        match (take(&self.room), of_keys) {
            (Some(all), None) => Ok(Room { all, of_keys: None, own }),
            (Some(all), Some(Some(of_keys))) => Ok(Room { all, of_keys: Some(of_keys), own }),
            _ => Err(own),
        }
    }

    /// Waits for room for so many events. As many as there is room for may wait, all in all and of the key's account:
    /// more fail at once.
    pub async fn room_in_turn(&self, events: usize, key: Option<&VerifiedKey>) -> Result<Room, Error> {
        let places = self.places(events)?;
        let own = match key {
            Some(key) => {
                let account = self.accounts.get(&key.eco_id);
                Some(Arc::new(account.take_in_turn(places).await.ok_or(Error::Overloaded)?))
            }
            None => None,
        };
        let own = match self.common_now(places, own) {
            Ok(room) => return Ok(room),
            Err(own) => own,
        };
        let _waits = self.waiting.clone().try_acquire_many_owned(places).map_err(|_| Error::Overloaded)?;
        let take = async |of: &Arc<Semaphore>| {
            of.clone().acquire_many_owned(places).await.map_err(|_| Error::Stopping)
        };
        // A key's first among keys: what waits for that keeps no service out.
        let of_keys = if own.is_some() { Some(take(&self.of_keys).await?) } else { None };
        Ok(Room { all: take(&self.room).await?, of_keys, own })
    }

    /// The same as [`Self::record`], of events for which there is room.
    pub async fn record_in(&self, room: Room, events: Vec<Event>) -> Result<Vec<Outcome>, Error> {
        self.submit(events, room).await
    }

    fn places(&self, events: usize) -> Result<u32, Error> {
        let fits = Some(events).filter(|n| *n <= self.capacity);
        fits.and_then(|n| u32::try_from(n).ok()).ok_or(Error::Overloaded)
    }

    async fn submit(&self, events: Vec<Event>, mut room: Room) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = vec![Outcome::Accepted; events.len()];
        let mut waiting = Vec::new();
        for (queue, part) in self.queues.iter().zip(self.divide(events)) {
            if part.events.is_empty() {
                continue;
            }
            let taken = room.split(part.events.len()).expect("there is room for all of its parts");
            let (answer, answered) = oneshot::channel();
            let (span, arrived) = (Span::current(), Instant::now());
            let submission =
                Submission { events: part.events, answer, span, arrived, room: taken, own: room.own.clone() };
            queue.try_send(submission).map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => Error::Overloaded,
                mpsc::error::TrySendError::Closed(_) => Error::Stopping,
            })?;
            waiting.push((answered, part.positions));
        }
        for (answered, positions) in waiting {
            // A writer answers everything it takes; it is gone only when the server stops.
            let own = answered.await.map_err(|_| Error::Stopping)??;
            for (position, outcome) in positions.into_iter().zip(own) {
                outcomes[position] = outcome;
            }
        }
        Ok(outcomes)
    }

    fn divide(&self, events: Vec<Event>) -> Vec<Part> {
        let mut parts: Vec<Part> = self.queues.iter().map(|_| Part::default()).collect();
        for (position, event) in events.into_iter().enumerate() {
            let part = &mut parts[writer_of(&event.eco_id, self.queues.len())];
            part.events.push(event);
            part.positions.push(position);
        }
        parts
    }
}

impl Collector for Recorder {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let waiting = self.capacity.saturating_sub(self.room.available_permits());
        for (name, help, value) in [
            ("nexus_usage_waiting_events", "Events that wait for their commit", waiting),
            ("nexus_usage_waiting_events_limit", "Events that may wait at most", self.capacity),
            (
                "nexus_usage_set_aside_events",
                "Events that wait for a rebuild or a change of plan",
                self.aside.taken(),
            ),
            ("nexus_usage_set_aside_events_limit", "Events that may at most", self.aside.capacity),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn writer_of(eco_id: &EcoId, writers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    eco_id.hash(&mut hasher);
    (hasher.finish() % writers as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> VerifiedKey {
        let eco_id = EcoId::parse(&format!("eco_{number}")).expect("an id");
        VerifiedKey { key_id: String::new(), eco_id, scopes: Default::default(), test_mode: false }
    }

    /// However many accounts there are.
    #[tokio::test]
    async fn keys_leave_a_quarter_of_the_room_to_services() {
        let (recorder, _queues) = Recorder::new(1, 40_000);
        let mut held: Vec<_> =
            (0..3).map(|n| recorder.room_now(10_000, Some(&key(n))).expect("there is room")).collect();
        assert!(recorder.room_now(1, Some(&key(3))).is_err());
        let waits = tokio::spawn({
            let recorder = recorder.clone();
            async move { recorder.room_in_turn(5_000, Some(&key(3))).await.is_ok() }
        });
        while recorder.waiting.available_permits() == 40_000 {
            tokio::task::yield_now().await;
        }
        let of_a_service = recorder.room_in_turn(10_000, None).await.expect("a quarter");
        held.pop();
        assert!(waits.await.expect("it does not panic"));
        drop((held, of_a_service));
        assert_eq!(
            (recorder.room.available_permits(), recorder.of_keys.available_permits()),
            (40_000, 30_000)
        );
    }
}
