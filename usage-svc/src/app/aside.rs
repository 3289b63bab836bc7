//! Calls that need a day that is being rebuilt, or an account whose plan is being changed. Nobody waits for such a lock
//! within a transaction, which would hold up others by the locks that it has meanwhile. The call is set aside, holding
//! nothing, and tried again until it is counted or its time is over.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};

use super::{
    flush::FlushError,
    record_usage::{Submission, answer},
    writer::Writer,
};

/// How long a call is tried from its arrival on: as long as any lock is waited for.
const TRIED_FOR: Duration = Duration::from_secs(5);
/// Pause between two tries: longer than most changes of plan take.
const PAUSE: Duration = Duration::from_millis(50);
/// What is set aside may be this part of what the queues take.
const PART: usize = 4;

/// Room for events that are set aside, apart from the queues', so that they refuse nobody else.
#[derive(Clone, Debug)]
pub(super) struct Share {
    room: Arc<Semaphore>,
    pub(super) capacity: usize,
}

impl Share {
    /// Beside queues for so many events.
    pub(super) fn of(queues: usize) -> Self {
        let capacity = (queues / PART).max(1);
        Self { room: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// Events that are set aside.
    pub(super) fn taken(&self) -> usize {
        self.capacity.saturating_sub(self.room.available_permits())
    }

    /// Moves a call here from the queue's room. One that is larger than all of this takes all of it.
    fn admit(&self, call: &mut Submission) -> bool {
        let places = u32::try_from(call.events.len().min(self.capacity)).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(places);
        room.map(|room| call.room = room).is_ok()
    }
}

/// The way there.
#[derive(Clone)]
pub(super) struct Aside {
    share: Share,
    calls: mpsc::Sender<Submission>,
}

/// The far end.
pub(super) struct Held(mpsc::Receiver<Submission>);

impl Aside {
    /// For as many events as the share has room for.
    pub(super) fn new(share: Share) -> (Self, Held) {
        // A call has at least one event, so the share is full first.
        let (calls, held) = mpsc::channel(share.capacity);
        (Self { share, calls }, Held(held))
    }

    /// Sets calls aside. Those that there is no room for are answered at once.
    pub(super) fn put(&self, group: Vec<Submission>) {
        use mpsc::error::TrySendError::{Closed, Full};
        for mut call in group {
            if self.share.admit(&mut call) {
                match self.calls.try_send(call) {
                    Ok(()) => continue,
                    Err(Full(back) | Closed(back)) => call = back,
                }
            }
            answer(vec![call], Err(FlushError::Busy));
        }
    }
}

impl Held {
    /// Tries what is set aside until it is answered; ends after those who set aside.
    pub(super) async fn serve(mut self, mut writer: Writer) {
        let mut held = Vec::new();
        loop {
            if held.is_empty() {
                match self.0.recv().await {
                    Some(call) => held.push(call),
                    None => return,
                }
            }
            sleep(PAUSE).await;
            while let Ok(call) = self.0.try_recv() {
                held.push(call);
            }
            let locked = writer.write(held).await;
            let (over, rest): (Vec<_>, Vec<_>) =
                locked.into_iter().partition(|call| call.arrived.elapsed() >= TRIED_FOR);
            answer(over, Err(FlushError::Busy));
            held = rest;
        }
    }
}
