//! Takes events for recording and waits for their commit. One way for single events and batches.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::Span;

use super::flush::FlushError;
use crate::{
    domain::event::{Event, Outcome},
    error::Error,
};

/// Events of one call, on their way to the writer.
pub(super) struct Submission {
    pub(super) events: Vec<Event>,
    pub(super) answer: oneshot::Sender<Result<Vec<Outcome>, FlushError>>,
    /// The caller's span: the flush continues its trace.
    pub(super) span: Span,
    /// Room in the queue, until the answer is out.
    _room: OwnedSemaphorePermit,
}

/// The bounded queue to the writer.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Submission>,
    room: Arc<Semaphore>,
}

impl Recorder {
    /// A queue for so many events, and its far end.
    pub(super) fn new(capacity: usize) -> (Self, mpsc::Receiver<Submission>) {
        // A submission has at least one event, so the semaphore is full first.
        let (queue, submissions) = mpsc::channel(capacity);
        (Self { queue, room: Arc::new(Semaphore::new(capacity)) }, submissions)
    }

    /// Records events; answers with an outcome for each, in their order, after the commit. The events are
    /// written also when the caller does not wait for the answer.
    pub async fn record(&self, events: Vec<Event>) -> Result<Vec<Outcome>, Error> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let places = u32::try_from(events.len()).map_err(|_| Error::Overloaded)?;
        let room = self.room.clone().try_acquire_many_owned(places).map_err(|_| Error::Overloaded)?;
        let (answer, answered) = oneshot::channel();
        let submission = Submission { events, answer, span: Span::current(), _room: room };
        self.queue.try_send(submission).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Stopping,
        })?;
        // The writer answers everything it takes; it is gone only when the server stops.
        Ok(answered.await.map_err(|_| Error::Stopping)??)
    }
}
