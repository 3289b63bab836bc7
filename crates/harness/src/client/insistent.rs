//! A client that calls usage-svc itself: lanes that each record calls, one request after the other, through
//! whichever replica, and insist on an answer.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use nexus_proto::usage::v1::EventOutcome;
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Args,
    journal::{Entry, Journal, answered},
    requests::{Answered, Requests, Way},
    workload::{ACCOUNTS, Call, series},
};

/// Requests of a client at one time.
const LANES: u32 = 3;
/// Pause of a lane that no replica answered.
const PAUSE: Duration = Duration::from_millis(20);
/// Calls of a large batch, all of one account, so that one writer of a replica has them: such are copied into the log.
const LARGE: std::ops::RangeInclusive<usize> = 1_200..=2_400;

/// Delivers what is `left` of the process before, then makes new calls until `finishing`.
pub(super) async fn run(
    args: &Args,
    process: u32,
    journal: Journal,
    left: Vec<Call>,
    finishing: watch::Receiver<bool>,
) -> Result<()> {
    let client = Arc::new(Client { requests: Requests::new(args)?, journal, spools: args.spools });
    client.journal.note(&[Entry::Begin { recovered: 0 }])?;
    let lanes = (0..LANES).map(|lane| {
        let rng = series(args.seed, args.number, process, lane);
        let left = left.iter().skip(lane as usize).step_by(LANES as usize).cloned().collect();
        tokio::spawn(Lane { client: client.clone(), rng }.run(left, finishing.clone()))
    });
    for ended in try_join_all(lanes).await? {
        ended?;
    }
    Ok(())
}

struct Client {
    requests: Requests,
    journal: Journal,
    spools: bool,
}

struct Lane {
    client: Arc<Client>,
    rng: StdRng,
}

impl Lane {
    async fn run(mut self, left: Vec<Call>, finishing: watch::Receiver<bool>) -> Result<()> {
        self.deliver(left).await?;
        while !*finishing.borrow() {
            let calls = self.calls().await?;
            self.client.journal.note(&calls.iter().cloned().map(Entry::Sent).collect::<Vec<_>>())?;
            self.deliver(calls.clone()).await?;
            self.once_more(&calls).await?;
        }
        Ok(())
    }

    /// The next calls, some admitted before. An admission may cover several, or less than all of them.
    async fn calls(&mut self) -> Result<Vec<Call>> {
        let kind = self.rng.random_range(0..100);
        let count = match kind {
            0..40 => 1,
            40..95 => self.rng.random_range(2..=40),
            _ => self.rng.random_range(LARGE),
        };
        let mut calls: Vec<Call> = (0..count).map(|_| Call::random(&mut self.rng)).collect();
        let eco_id = ACCOUNTS[self.rng.random_range(0..ACCOUNTS.len())];
        if LARGE.contains(&count) {
            calls.iter_mut().filter(|call| call.valid).for_each(|call| eco_id.clone_into(&mut call.eco_id));
        }
        if self.rng.random_bool(0.4) {
            let units = self.rng.random_range(1..20);
            let replica = self.replica();
            // Asked once; without its answer the calls are recorded as they are.
            if let Some(admission) = self.client.requests.admission(replica, eco_id, units).await? {
                for call in calls.iter_mut().filter(|call| call.eco_id == eco_id) {
                    call.admission.clone_from(&admission);
                }
            }
        }
        Ok(calls)
    }

    fn replica(&mut self) -> usize {
        self.rng.random_range(0..self.client.requests.replicas())
    }

    /// Sends calls, through whichever replica and RPC, until each has its answer.
    async fn deliver(&mut self, mut open: Vec<Call>) -> Result<()> {
        while !open.is_empty() {
            let asked = match self.rng.random_bool(0.2) {
                true => (0..self.client.requests.replicas()).collect(),
                false => vec![self.replica()],
            };
            let way = match self.rng.random_range(0..100) {
                0..25 => Way::Stream,
                _ if open.len() == 1 => Way::Single,
                _ => Way::Batch,
            };
            let answers =
                join_all(asked.iter().map(|replica| self.client.requests.record(*replica, way, &open))).await;
            let mut settled = HashSet::new();
            for answer in answers {
                settled.extend(self.client.note(way, answer?)?);
            }
            open.retain(|call| !settled.contains(&call.id));
            if settled.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Sends some calls again that are acknowledged, as they were, or others under their identity.
    async fn once_more(&mut self, calls: &[Call]) -> Result<()> {
        // With spools, whichever of two is counted first counts, and the other goes into quarantine.
        let tamper = self.rng.random_bool(0.3) && !self.client.spools;
        if !tamper && self.rng.random_bool(0.7) {
            return Ok(());
        }
        let mut again: Vec<Call> = calls.iter().filter(|call| call.valid).cloned().collect();
        again.shuffle(&mut self.rng);
        again.truncate(self.rng.random_range(1..=5));
        let (again, expected) = match tamper {
            true => (again.iter().map(Call::tampered).collect(), EventOutcome::Conflict),
            false => (again, EventOutcome::Duplicate),
        };
        if again.is_empty() {
            return Ok(());
        }
        let replica = self.replica();
        let answered = self.client.requests.record(replica, Way::Batch, &again).await?;
        let is_wrong =
            |outcome| outcome != expected && !(self.client.spools && outcome == EventOutcome::Accepted);
        let wrong = answered.iter().filter(|(_, outcome, _)| is_wrong(*outcome)).map(|(id, outcome, _)| {
            Entry::Violation(format!(
                "{id}, acknowledged before, was sent again and is {} instead of {}",
                outcome.as_str_name(),
                expected.as_str_name()
            ))
        });
        self.client.journal.note(&wrong.collect::<Vec<_>>())
    }
}

impl Client {
    /// Writes down what was answered; returns the calls that need not be sent again.
    fn note(&self, way: Way, answer: Answered) -> Result<Vec<Uuid>> {
        let mut entries = vec![Entry::Heard { way, events: answer.len() }];
        entries.extend(answer.iter().map(|(id, outcome, reason)| answered(*id, *outcome, reason)));
        self.journal.note(&entries)?;
        Ok(answer.into_iter().map(|(id, ..)| id).collect())
    }
}
