//! Batches on their way to the server, oldest first, and the pause after a failure. After a failure one batch
//! at a time tries, until one gets through: a server that comes back is not met by everything at once.

use std::collections::{BTreeMap, VecDeque};

use rand::Rng;
use tokio::time::{Duration, Instant};

use super::batch::Batch;
use crate::backoff::Backoff;

/// Events that may be suspected of failing on their own; with more of them nothing new is taken.
const MOST_SUSPECTS: usize = 1_000;
/// While others wait, every so many-th batch sent is a suspect.
const SUSPECTS_TURN: u32 = 8;

/// The batches.
pub(super) struct Outbox {
    limit: usize,
    backoff: Backoff,
    ready: BTreeMap<u64, Batch>,
    /// Batches that the server failed on, in parts: behind the others, which they must not block.
    suspects: VecDeque<Batch>,
    under_way: BTreeMap<u64, Batch>,
    /// In a row.
    failures: u32,
    closed_until: Option<Instant>,
    turn: u32,
}

impl Outbox {
    /// At most `limit` batches are ready or under way.
    pub(super) fn new(limit: usize, backoff: Backoff) -> Self {
        Self {
            limit,
            backoff,
            ready: BTreeMap::new(),
            suspects: VecDeque::new(),
            under_way: BTreeMap::new(),
            failures: 0,
            closed_until: None,
            turn: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        let suspected: usize = self.suspects.iter().map(Batch::len).sum();
        self.ready.len() + self.under_way.len() < self.limit && suspected < MOST_SUSPECTS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.suspects.is_empty() && self.under_way.is_empty()
    }

    /// The lowest number of an event that is not decided on.
    pub(super) fn first(&self) -> Option<u64> {
        let ready = self.ready.keys().next().copied();
        let under_way = self.under_way.keys().next().copied();
        ready.into_iter().chain(under_way).chain(self.suspects.iter().map(Batch::first)).min()
    }

    pub(super) fn push(&mut self, batch: Batch) {
        self.ready.insert(batch.first(), batch);
    }

    /// The next batch to send now, if one may go; it is under way then.
    pub(super) fn next(&mut self, now: Instant) -> Option<&Batch> {
        let most = if self.failures == 0 { self.limit } else { 1 };
        if self.under_way.len() >= most || self.closed_until.is_some_and(|until| now < until) {
            return None;
        }
        self.turn = self.turn.wrapping_add(1);
        let suspects_first = self.turn.is_multiple_of(SUSPECTS_TURN) || self.ready.is_empty();
        let suspect = if suspects_first { self.suspects.pop_front() } else { None };
        let batch = suspect.or_else(|| self.ready.pop_first().map(|(_, batch)| batch))?;
        Some(self.under_way.entry(batch.first()).or_insert(batch))
    }

    /// When a batch may be sent again, while a pause keeps some from it.
    pub(super) fn opens(&self, now: Instant) -> Option<Instant> {
        let waits = !self.ready.is_empty() || !self.suspects.is_empty();
        self.closed_until.filter(|until| waits && now < *until)
    }

    /// The server has decided on this batch.
    pub(super) fn decided(&mut self, first: u64) -> Option<Batch> {
        self.failures = 0;
        self.closed_until = None;
        self.under_way.remove(&first)
    }

    /// This batch is to be sent again as it is.
    pub(super) fn later(&mut self, first: u64, told: Option<Duration>, now: Instant, rng: &mut impl Rng) {
        self.pause(told, now, rng);
        if let Some(batch) = self.under_way.remove(&first) {
            self.push(batch);
        }
    }

    /// This batch, or an event in it, may be what the server fails on.
    pub(super) fn suspect(&mut self, first: u64, now: Instant, rng: &mut impl Rng) {
        self.pause(None, now, rng);
        if let Some(batch) = self.under_way.remove(&first) {
            let (one, other) = batch.halves();
            self.suspects.push_back(one);
            self.suspects.extend(other);
        }
    }

    /// The server takes no such batch: its halves are sent. An event alone is returned: it is refused.
    pub(super) fn refused(&mut self, first: u64) -> Option<Batch> {
        // The server answers.
        let (one, other) = self.decided(first)?.halves();
        let Some(other) = other else { return Some(one) };
        self.push(one);
        self.push(other);
        None
    }

    /// Takes every batch out that is in memory only.
    pub(super) fn take_unkept(&mut self) -> Vec<Batch> {
        let ready = std::mem::take(&mut self.ready).into_values();
        let under_way = std::mem::take(&mut self.under_way).into_values();
        let all = ready.chain(under_way).chain(std::mem::take(&mut self.suspects));
        all.filter(|batch| !batch.on_disk).collect()
    }

    /// Failures of one moment are one failure.
    fn pause(&mut self, told: Option<Duration>, now: Instant, rng: &mut impl Rng) {
        if self.closed_until.is_none_or(|until| until <= now) {
            self.failures = self.failures.saturating_add(1);
        }
        let until = now + self.backoff.pause(self.failures, told, rng);
        self.closed_until = Some(self.closed_until.map_or(until, |before| before.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use nexus_proto::usage::v1::UsageEvent;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn outbox() -> Outbox {
        Outbox::new(3, Backoff { first: 100 * MS, longest: 1_000 * MS })
    }

    fn batch(numbers: std::ops::Range<u64>) -> Batch {
        let events = numbers.clone().map(|_| UsageEvent::default()).collect();
        Batch { numbers: numbers.collect(), events, on_disk: false }
    }

    fn send_all(outbox: &mut Outbox, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| outbox.next(now).map(Batch::first)).collect()
    }

    #[test]
    fn after_a_failure_the_oldest_goes_alone_and_then_all() {
        let (mut outbox, rng, now) = (outbox(), &mut StdRng::seed_from_u64(1), Instant::now());
        for first in [0, 10, 20] {
            outbox.push(batch(first..first + 10));
        }
        assert!(!outbox.has_room());
        assert_eq!(send_all(&mut outbox, now), [0, 10, 20]);
        for first in [20, 0, 10] {
            outbox.later(first, None, now, rng);
        }
        assert_eq!(outbox.first(), Some(0));
        let opens = outbox.opens(now).expect("a pause");
        assert!((50 * MS..=100 * MS).contains(&(opens - now)), "one outage is one failure");
        assert_eq!(send_all(&mut outbox, now), [0; 0]);
        assert_eq!(send_all(&mut outbox, opens), [0], "one tries");
        outbox.decided(0);
        assert_eq!(send_all(&mut outbox, opens), [10, 20]);
        assert_eq!(outbox.first(), Some(10));
    }

    #[test]
    fn an_event_that_the_server_fails_on_does_not_block_the_others() {
        let (mut outbox, rng, mut now) = (outbox(), &mut StdRng::seed_from_u64(1), Instant::now());
        let poison = 3;
        outbox.push(batch(0..8));
        let mut counted = Vec::new();
        let mut next = 8;
        for _ in 0..100 {
            if outbox.has_room() {
                outbox.push(batch(next..next + 1));
                next += 1;
            }
            now = outbox.opens(now).unwrap_or(now);
            for first in send_all(&mut outbox, now) {
                if outbox.under_way[&first].numbers.contains(&poison) {
                    outbox.suspect(first, now, rng);
                } else {
                    counted.extend(outbox.decided(first).map(|b| b.numbers).unwrap_or_default());
                }
            }
        }
        counted.sort_unstable();
        let others: Vec<u64> = (0..next).filter(|n| *n != poison).collect();
        assert!(counted.len() > 60 && others.starts_with(&counted[..counted.len() - 4]), "{counted:?}");
        assert_eq!(outbox.first(), Some(poison));
    }

    #[test]
    fn a_refused_batch_is_sent_in_parts_down_to_the_event_at_fault() {
        let (mut outbox, now) = (outbox(), Instant::now());
        outbox.push(batch(0..8));
        let mut refused = Vec::new();
        while let Some(first) = outbox.next(now).map(Batch::first) {
            if outbox.under_way[&first].numbers.contains(&5) {
                refused.extend(outbox.refused(first).map(|b| b.numbers));
            } else {
                outbox.decided(first);
            }
        }
        assert_eq!(refused, [[5]]);
        assert!(outbox.is_empty());
    }
}
