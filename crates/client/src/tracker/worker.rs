//! The background task of a tracker. It takes what was tracked, gathers it into batches, keeps them on disk
//! where there is a disk buffer, sends them, and forgets an event when the server has decided on it.

use std::{collections::HashMap, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use nexus_proto::usage::v1::{
    EventOutcome, EventResult, UsageEvent, usage_service_client::UsageServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant, sleep_until},
};
use tonic::transport::Channel;

use super::{
    Item, Report, Waiter,
    batch::Batch,
    disk::Disk,
    outbox::Outbox,
    report,
    send::{self, Answer},
    stats::{Counters, add, get, subtract},
};
use crate::{
    backoff::Backoff,
    clock::ServerClock,
    credentials::Credentials,
    spool::{Appended, Found, Spool},
};

/// How long a tracker that was dropped still tries.
const LAST_TRIES: Duration = Duration::from_secs(30);
/// Events that were lost are logged at most so often.
const LOSS_LOG_EVERY: Duration = Duration::from_secs(10);

/// Settings of the worker.
pub(super) struct Settings {
    /// One for each replica.
    pub(super) clients: Vec<UsageServiceClient<Channel>>,
    pub(super) credentials: Credentials,
    pub(super) flush_records: usize,
    pub(super) largest_batch: usize,
    pub(super) flush_interval: Duration,
    pub(super) in_flight: usize,
    pub(super) call_timeout: Duration,
    pub(super) backoff: Backoff,
    pub(super) clock: ServerClock,
}

/// The task.
pub(super) struct Worker {
    settings: Settings,
    /// The time of this turn: what is not due by it is waited for, so that nothing falls between.
    now: Instant,
    items: mpsc::Receiver<Item>,
    items_ended: bool,
    stop: watch::Receiver<Option<Instant>>,
    deadline: Option<Instant>,
    counters: Arc<Counters>,
    gathered: Vec<UsageEvent>,
    gathered_since: Instant,
    /// What is gathered goes out now.
    hurry: bool,
    /// Number of the next event that is gathered.
    next_number: u64,
    disk: Option<Disk>,
    outbox: Outbox,
    calls: FuturesUnordered<BoxFuture<'static, (u64, usize, Answer)>>,
    /// The replica that is called.
    replica: usize,
    /// Callers of `flush`, and the number below which everything must have been decided on.
    flushes: Vec<(u64, oneshot::Sender<()>)>,
    /// Who waits for the outcome of an event, by its number.
    waiters: HashMap<u64, Box<Waiter>>,
    losses_logged: (u64, Option<Instant>),
}

impl Worker {
    pub(super) fn new(
        settings: Settings,
        items: mpsc::Receiver<Item>,
        stop: watch::Receiver<Option<Instant>>,
        counters: Arc<Counters>,
        spool: Option<(Arc<Spool>, Found)>,
    ) -> Self {
        Self {
            outbox: Outbox::new(settings.in_flight, settings.backoff),
            settings,
            now: Instant::now(),
            items,
            items_ended: false,
            stop,
            deadline: None,
            counters,
            gathered: Vec::new(),
            gathered_since: Instant::now(),
            hurry: false,
            next_number: spool.as_ref().map_or(0, |(_, found)| found.next_number),
            disk: spool.map(Disk::new),
            calls: FuturesUnordered::new(),
            replica: 0,
            flushes: Vec::new(),
            waiters: HashMap::new(),
            losses_logged: (0, None),
        }
    }

    /// Works until everything is delivered after the end of the input, or until the deadline.
    pub(super) async fn run(mut self) -> Report {
        let mut taken = Vec::new();
        loop {
            self.now = Instant::now();
            self.forget_settled().await;
            self.place_gathered().await;
            self.load().await;
            self.send();
            self.answer_flushes();
            self.log_losses();
            if self.is_done() || self.deadline.is_some_and(|deadline| deadline <= self.now) {
                return self.end().await;
            }
            let room = self.room();
            let wake = self.wakes();
            tokio::select! {
                n = self.items.recv_many(&mut taken, room), if room > 0 && !self.items_ended => {
                    self.items_ended = n == 0;
                    self.gather(taken.drain(..));
                }
                Some(answered) = self.calls.next() => self.settle(answered),
                () = sleep_until(wake.unwrap_or(self.now)), if wake.is_some() => {}
                changed = self.stop.changed(), if self.deadline.is_none() => {
                    let asked = changed.ok().and_then(|()| *self.stop.borrow_and_update());
                    self.deadline = Some(asked.unwrap_or_else(|| Instant::now() + LAST_TRIES));
                    self.items.close();
                }
            }
        }
    }

    /// Events that may be taken now.
    fn room(&self) -> usize {
        let disk_takes = self.disk.as_ref().is_some_and(|disk| !disk.full && disk.works(self.now));
        if !disk_takes && !self.outbox.has_room() {
            return 0;
        }
        self.settings.largest_batch.saturating_sub(self.gathered.len())
    }

    fn gather(&mut self, items: impl Iterator<Item = Item>) {
        for item in items {
            match item {
                Item::Event(event, waiter) => {
                    if let Some(waiter) = waiter {
                        self.waiters.insert(self.next_number, waiter);
                    }
                    if self.gathered.is_empty() {
                        self.gathered_since = Instant::now();
                    }
                    self.gathered.push(event);
                    self.next_number += 1;
                }
                Item::Flush(done) => {
                    self.flushes.push((self.next_number, done));
                    self.hurry = true;
                }
            }
        }
    }

    fn due(&self) -> Instant {
        let now = self.hurry || self.deadline.is_some() || self.gathered.len() >= self.settings.flush_records;
        if now { self.gathered_since } else { self.gathered_since + self.settings.flush_interval }
    }

    /// When something is to be done though nothing happens.
    fn wakes(&self) -> Option<Instant> {
        let now = self.now;
        // What is due and still there waits for room, which a call or the disk makes.
        let due = Some(self.due()).filter(|due| !self.gathered.is_empty() && now < *due);
        let disk = self.disk.as_ref().and_then(|disk| disk.rests_until).filter(|until| now < *until);
        [due, disk, self.outbox.opens(now), self.deadline].into_iter().flatten().min()
    }

    /// Makes a batch of what is gathered and due: on disk where that works, else in memory.
    async fn place_gathered(&mut self) {
        if self.gathered.is_empty() || self.now < self.due() {
            self.hurry &= !self.gathered.is_empty();
            return;
        }
        let first = self.next_number - self.gathered.len() as u64;
        let on_disk = self.keep(first).await;
        let follows = self.disk.as_ref().is_none_or(|disk| disk.unread == 0);
        let has_room = self.outbox.has_room();
        if !on_disk && !has_room {
            return;
        }
        let events = std::mem::take(&mut self.gathered);
        self.hurry = false;
        if on_disk && !(has_room && follows) {
            if let Some(disk) = &mut self.disk {
                disk.unread += events.len() as u64;
            }
            return;
        }
        if let Some(disk) = self.disk.as_mut().filter(|_| on_disk) {
            disk.cursor = self.next_number;
        }
        self.outbox.push(Batch { numbers: (first..self.next_number).collect(), events, on_disk });
    }

    /// Puts what is gathered on disk, if that works.
    async fn keep(&mut self, first: u64) -> bool {
        let Some(disk) = self.disk.as_mut().filter(|disk| disk.works(self.now)) else { return false };
        let events = self.gathered.clone();
        let count = events.len();
        let appended = disk.with(&self.counters, move |spool| spool.append(first, &events)).await;
        disk.full = appended == Some(Appended::Full);
        let kept = appended == Some(Appended::Synced);
        if kept {
            subtract(&self.counters.queued, count);
            add(&self.counters.on_disk, count);
        }
        kept
    }

    /// Reads from the disk what can be sent.
    async fn load(&mut self) {
        while self.outbox.has_room() {
            let Some(disk) = self.disk.as_mut().filter(|d| d.unread > 0 && d.works(self.now)) else {
                return;
            };
            let (from, at_most) = (disk.cursor, self.settings.largest_batch);
            let Some(read) = disk.with(&self.counters, move |spool| spool.read(from, at_most)).await else {
                return;
            };
            let last = read.numbers.iter().chain(&read.damaged).max();
            disk.cursor = last.map_or(disk.cursor, |last| last + 1);
            let count = (read.numbers.len() + read.damaged.len()) as u64;
            disk.unread = if count == 0 { 0 } else { disk.unread.saturating_sub(count) };
            if !read.damaged.is_empty() {
                tracing::error!(events = read.damaged.len(), "usage events on disk are damaged and lost");
                add(&self.counters.damaged, read.damaged.len());
                subtract(&self.counters.on_disk, read.damaged.len());
                disk.settled.extend(read.damaged);
            }
            if !read.numbers.is_empty() {
                self.outbox.push(Batch { numbers: read.numbers, events: read.events, on_disk: true });
            }
        }
    }

    fn send(&mut self) {
        while let Some(batch) = self.outbox.next(self.now) {
            let (first, events) = (batch.first(), batch.events.clone());
            let replica = self.replica;
            let client = self.settings.clients[replica].clone();
            let metadata = self.waiters.get(&first).map(|waiter| waiter.metadata.clone()).unwrap_or_default();
            let (credentials, timeout) = (self.settings.credentials.clone(), self.settings.call_timeout);
            let clock = self.settings.clock.clone();
            let call = send::send(client, credentials, clock, timeout, metadata, events);
            self.calls.push(call.map(move |answer| (first, replica, answer)).boxed());
        }
    }

    fn settle(&mut self, answered: (u64, usize, Answer)) {
        let mut next = Some(answered);
        // What came in meanwhile is removed from the disk together.
        while let Some((first, replica, answer)) = next {
            self.settle_one(first, replica, answer);
            next = self.calls.next().now_or_never().flatten();
        }
    }

    fn settle_one(&mut self, first: u64, replica: usize, answer: Answer) {
        let (now, rng) = (Instant::now(), &mut rand::rng());
        match answer {
            Answer::Decided(results) => {
                self.counters.set_trouble(None);
                self.counters.set_away(false);
                if let Some(batch) = self.outbox.decided(first) {
                    self.count(batch, &results);
                }
            }
            Answer::Later { why, told, away } => {
                self.outbox.later(first, told, now, rng);
                self.counters.set_away(away);
                self.failed(why, Some(replica));
            }
            Answer::Suspect { why } => {
                self.outbox.suspect(first, now, rng);
                self.failed(why, None);
            }
            Answer::Refused { why } => match self.outbox.refused(first) {
                Some(alone) => {
                    let refused = EventResult {
                        outcome: EventOutcome::Invalid.into(),
                        message: why,
                        ..EventResult::default()
                    };
                    self.count(alone, &[refused]);
                }
                None => self.failed(why, None),
            },
        }
    }

    fn failed(&mut self, why: String, replica: Option<usize>) {
        tracing::debug!(why, "usage events are sent again");
        add(&self.counters.retries, 1);
        self.counters.set_trouble(Some(why));
        // Once, however many calls to that replica fail at a time.
        if replica == Some(self.replica) {
            self.replica = (self.replica + 1) % self.settings.clients.len();
        }
    }

    /// Counts what the server has decided, and forgets the batch.
    fn count(&mut self, batch: Batch, results: &[EventResult]) {
        let by_index: HashMap<usize, &EventResult> =
            results.iter().filter_map(|r| Some((usize::try_from(r.index).ok()?, r))).collect();
        for (index, (number, event)) in batch.numbers.iter().zip(&batch.events).enumerate() {
            let result = by_index.get(&index).copied();
            let outcome = result.map_or(EventOutcome::Accepted, EventResult::outcome);
            match outcome {
                EventOutcome::Accepted => add(&self.counters.accepted, 1),
                EventOutcome::Duplicate => add(&self.counters.duplicates, 1),
                outcome => {
                    let reason = result.map(|r| r.message.as_str()).unwrap_or_default();
                    let (eco_id, event_id) = (&event.eco_id, &event.event_id);
                    tracing::warn!(eco_id, event_id, ?outcome, reason, "a usage event was refused for good");
                    self.counters.refuse(outcome);
                }
            }
            if let Some(waiter) = self.waiters.remove(number) {
                // Whoever waited may have gone.
                waiter.decided.send(outcome).ok();
            }
        }
        match self.disk.as_mut().filter(|_| batch.on_disk) {
            Some(disk) => {
                subtract(&self.counters.on_disk, batch.len());
                disk.settled.extend(batch.numbers);
            }
            None => subtract(&self.counters.queued, batch.len()),
        }
    }

    /// Removes from the disk what the server has decided on.
    async fn forget_settled(&mut self) {
        let Some(disk) = self.disk.as_mut().filter(|d| !d.settled.is_empty() && d.works(self.now)) else {
            return;
        };
        let settled = std::mem::take(&mut disk.settled);
        let numbers = settled.clone();
        match disk.with(&self.counters, move |spool| spool.remove(&numbers)).await {
            Some(()) => disk.full = false,
            // They are sent again, as duplicates, if the process ends before.
            None => disk.settled = settled,
        }
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let gathered = self.next_number - self.gathered.len() as u64;
        let unread = self.disk.as_ref().filter(|disk| disk.unread > 0).map(|disk| disk.cursor);
        let decided = [Some(gathered), unread, self.outbox.first()].into_iter().flatten().min();
        let decided = decided.unwrap_or(gathered);
        for (_, done) in self.flushes.extract_if(.., |(number, _)| *number <= decided) {
            // Whoever asked may have gone.
            done.send(()).ok();
        }
    }

    fn is_done(&self) -> bool {
        let on_disk = self.disk.as_ref().is_some_and(|d| d.unread > 0 || !d.settled.is_empty());
        self.items_ended && self.gathered.is_empty() && self.outbox.is_empty() && !on_disk
    }

    /// Puts on disk what is still in memory, if that works, and says how it ended.
    async fn end(mut self) -> Report {
        self.calls.clear();
        self.now = Instant::now();
        self.forget_settled().await;
        let unkept = self.outbox.take_unkept();
        let mut left: Vec<UsageEvent> = unkept.into_iter().flat_map(|batch| batch.events).collect();
        left.append(&mut self.gathered);
        while let Ok(item) = self.items.try_recv() {
            if let Item::Event(event, _) = item {
                left.push(event);
            }
        }
        for part in left.chunks(self.settings.largest_batch) {
            // New numbers: what was tracked first has the lowest still.
            self.gathered = part.to_vec();
            let first = self.next_number;
            self.next_number += part.len() as u64;
            self.keep(first).await;
        }
        let report = report(&self.counters);
        if report.stats.lost() > 0 || report.stats.refused.total() > 0 {
            tracing::error!(stats = %report.stats, "not every usage event was delivered");
        } else {
            tracing::info!(stats = %report.stats, "the tracker of usage events has ended");
        }
        report
    }

    fn log_losses(&mut self) {
        let lost = get(&self.counters.dropped_queue_full);
        let (logged, at) = self.losses_logged;
        if lost > logged && at.is_none_or(|at| at.elapsed() >= LOSS_LOG_EVERY) {
            tracing::error!(dropped = lost, "the queue of usage events is full; events are dropped");
            self.losses_logged = (lost, Some(Instant::now()));
        }
    }
}
