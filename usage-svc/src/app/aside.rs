//! Calls that need a day that is being rebuilt, or an account whose plan is being changed. Nobody waits for such a lock
//! within a transaction that has others, which would hold up who needs these. The call is set aside, holding nothing,
//! until its time is over. The lock that it lacks is waited for in turn, once for all calls that lack it, so that
//! those who take it again and again let them through.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    flush::FlushError,
    locked::{LOCK_WAIT, Lock},
    record_usage::{Submission, Taken, answer},
    writer::{Lacking, Writer},
};

/// Locks that are waited for at a time. Calls that lack others are tried without waiting for these.
pub(super) const LOCKS: u32 = 4;
/// Writers of what is set aside, each with a connection: one tries what is not waited for.
pub const WRITERS: u32 = LOCKS + 1;
/// Pause between two tries, and between two looks for calls whose time is over.
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
        room.map(|room| call.room = Taken::aside(room)).is_ok()
    }
}

/// The way there.
#[derive(Clone)]
pub(super) struct Aside {
    share: Share,
    calls: mpsc::Sender<Lacking>,
}

/// The far end.
pub(super) struct Held {
    arriving: mpsc::Receiver<Lacking>,
    waiting: Waiting,
}

impl Aside {
    /// For as many events as the share has room for.
    pub(super) fn new(share: Share) -> (Self, Held) {
        // A call has at least one event, so the share is full first.
        let (calls, arriving) = mpsc::channel(share.capacity);
        (Self { share, calls }, Held { arriving, waiting: Waiting::default() })
    }

    /// Sets calls aside. Those that there is no room for are answered at once.
    pub(super) fn put(&self, group: Vec<Lacking>) {
        use mpsc::error::TrySendError::{Closed, Full};
        for (mut call, lock) in group {
            if self.share.admit(&mut call) {
                match self.calls.try_send((call, lock)) {
                    Ok(()) => continue,
                    Err(Full(back) | Closed(back)) => call = back.0,
                }
            }
            answer(vec![call], Err(FlushError::Busy));
        }
    }
}

/// Calls that wait, by the lock that they lack.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<BTreeMap<Lock, Vec<Submission>>>>);

impl Waiting {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<Lock, Vec<Submission>>) -> T) -> T {
        // Nothing is half done in it.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, (call, lock): Lacking) {
        self.with(|calls| calls.entry(lock).or_default().push(call));
    }

    fn take(&self, lock: Lock) -> Vec<Submission> {
        self.with(|calls| calls.remove(&lock)).unwrap_or_default()
    }

    /// The lock, but for these, whose calls wait longest.
    fn next(&self, but: &HashSet<Lock>) -> Option<Lock> {
        self.with(|calls| {
            let others = calls.iter().filter(|(lock, _)| !but.contains(lock));
            others.min_by_key(|(_, group)| group.iter().map(|call| call.arrived).min()).map(|(lock, _)| *lock)
        })
    }

    /// Takes the calls that lack other locks than these.
    fn take_others(&self, but: &HashSet<Lock>) -> Vec<Submission> {
        let others = self.with(|calls| {
            let (waited_for, others) = mem::take(calls).into_iter().partition(|(lock, _)| but.contains(lock));
            *calls = waited_for;
            others
        });
        others.into_values().flatten().collect()
    }

    /// Answers calls whose time is over.
    fn give_up(&self) {
        let over = self.with(|calls| {
            let mut over = Vec::new();
            calls.retain(|_, group| {
                over.extend(group.extract_if(.., |call| call.arrived.elapsed() >= LOCK_WAIT));
                !group.is_empty()
            });
            over
        });
        answer(over, Err(FlushError::Busy));
    }

    fn is_empty(&self) -> bool {
        self.with(|calls| calls.is_empty())
    }
}

/// What a task ends with: its writer, the lock that it waited for, and calls that lack another.
type Done = (Writer, Option<Lock>, Vec<Lacking>);

impl Held {
    /// Waits for what is lacked, with a writer for each lock, and tries with another what has none; ends after those
    /// who set aside, when all is answered.
    pub(super) async fn serve(mut self, mut free: Vec<Writer>, trying: Writer) {
        let mut trying = Some(trying);
        let mut waited_for = HashSet::new();
        let mut tasks = JoinSet::<Done>::new();
        let mut tick = interval(PAUSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        while open || !tasks.is_empty() || !self.waiting.is_empty() {
            tokio::select! {
                call = self.arriving.recv(), if open => match call {
                    Some(call) => self.waiting.add(call),
                    None => open = false,
                },
                Some(done) = tasks.join_next() => {
                    let (writer, lock, back) = done.expect("a writer does not panic");
                    match lock {
                        Some(lock) => {
                            waited_for.remove(&lock);
                            free.push(writer);
                        }
                        None => trying = Some(writer),
                    }
                    back.into_iter().for_each(|call| self.waiting.add(call));
                }
                _ = tick.tick(), if !self.waiting.is_empty() => {
                    self.waiting.give_up();
                    if self.waiting.next(&waited_for).is_some() && let Some(mut writer) = trying.take() {
                        let group = self.waiting.take_others(&waited_for);
                        tasks.spawn(async move {
                            let back = writer.write(group).await;
                            (writer, None, back)
                        });
                    }
                }
            }
            while !free.is_empty()
                && let Some(lock) = self.waiting.next(&waited_for)
            {
                let (Some(mut writer), waiting) = (free.pop(), self.waiting.clone()) else { break };
                waited_for.insert(lock);
                tasks.spawn(async move {
                    let back = writer.write_in_turn(lock, || waiting.take(lock)).await;
                    (writer, Some(lock), back)
                });
            }
        }
    }
}
