//! A client that calls usage-svc itself: lanes that each record calls, one request after the other, through
//! whichever replica, and insist on an answer.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use futures::future::{join_all, try_join_all};
use nexus_client::{CallOptions, is_transient};
use nexus_proto::usage::v1::*;
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};
use usage_service_client::UsageServiceClient;
use uuid::Uuid;

use super::{
    Args,
    journal::{Entry, Journal, answered},
    workload::{ACCOUNTS, Call, series},
};

/// Requests of a client at one time.
const LANES: u32 = 3;
/// A replica may be stopped: then another is asked.
const DEADLINE: Duration = Duration::from_secs(2);
/// Pause of a lane that no replica answered.
const PAUSE: Duration = Duration::from_millis(20);

/// Delivers what is `left` of the process before, then makes new calls until `finishing`.
pub(super) async fn run(
    args: &Args,
    process: u32,
    journal: Journal,
    left: Vec<Call>,
    finishing: watch::Receiver<bool>,
) -> Result<()> {
    let replicas = args.replicas.iter().map(|url| Ok(nexus_client::usage(nexus_client::channel(url)?)));
    let client = Arc::new(Client {
        replicas: replicas.collect::<Result<_>>()?,
        options: CallOptions::bearer(&args.token, DEADLINE)?,
        journal,
        spools: args.spools,
    });
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
    replicas: Vec<UsageServiceClient<Channel>>,
    options: CallOptions,
    journal: Journal,
    spools: bool,
}

/// An answer: what became of each event, with a reason where it was refused; or that it is to be tried again.
type Answer = Option<Vec<(EventOutcome, String)>>;

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
        let count = if self.rng.random_bool(0.4) { 1 } else { self.rng.random_range(2..=40) };
        let mut calls: Vec<Call> = (0..count).map(|_| Call::random(&mut self.rng)).collect();
        if self.rng.random_bool(0.4) {
            let eco_id = ACCOUNTS[self.rng.random_range(0..ACCOUNTS.len())];
            let units = self.rng.random_range(1..20);
            if let Some(admission) = self.admission(eco_id, units).await? {
                for call in calls.iter_mut().filter(|call| call.eco_id == eco_id) {
                    call.admission.clone_from(&admission);
                }
            }
        }
        Ok(calls)
    }

    /// Asks one replica once; without its answer the calls are recorded as they are.
    async fn admission(&mut self, eco_id: &str, units_count: i64) -> Result<Option<String>> {
        let replica = self.rng.random_range(0..self.client.replicas.len());
        let request = CheckQuotaRequest { eco_id: eco_id.to_owned(), units_count, ..Default::default() };
        let mut client = self.client.replicas[replica].clone();
        match client.check_quota(self.client.options.request(request)).await {
            Ok(answer) => Ok(Some(answer.into_inner().admission)),
            Err(status) if is_transient(&status) => Ok(None),
            Err(status) => bail!("CheckQuota at replica {replica}: {status:?}"),
        }
    }

    /// Sends calls, through whichever replica, until each has its answer.
    async fn deliver(&mut self, mut open: Vec<Call>) -> Result<()> {
        while !open.is_empty() {
            let all = 0..self.client.replicas.len();
            let asked: Vec<usize> =
                if self.rng.random_bool(0.2) { all.collect() } else { vec![self.rng.random_range(all)] };
            let answers = join_all(asked.iter().map(|replica| self.client.send(*replica, &open))).await;
            let mut settled = Vec::new();
            let mut heard = false;
            for answer in answers {
                if let Some(outcomes) = answer? {
                    heard = true;
                    let entries = open
                        .iter()
                        .zip(outcomes)
                        .map(|(call, (outcome, reason))| answered(call.id, outcome, &reason));
                    let entries = entries.collect::<Vec<_>>();
                    self.client.journal.note(&entries)?;
                    settled.extend(entries.iter().filter_map(settles));
                }
            }
            open.retain(|call| !settled.contains(&call.id));
            if !heard {
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
        let replica = self.rng.random_range(0..self.client.replicas.len());
        let Some(outcomes) = self.client.send(replica, &again).await? else { return Ok(()) };
        let is_wrong =
            |outcome| outcome != expected && !(self.client.spools && outcome == EventOutcome::Accepted);
        let wrong = again.iter().zip(outcomes).filter(|(_, (outcome, _))| is_wrong(*outcome));
        let wrong = wrong.map(|(call, (outcome, _))| {
            Entry::Violation(format!(
                "{}, acknowledged before, was sent again and is {} instead of {}",
                call.id,
                outcome.as_str_name(),
                expected.as_str_name()
            ))
        });
        self.client.journal.note(&wrong.collect::<Vec<_>>())
    }
}

impl Client {
    /// One request: a single event as such, or a batch.
    async fn send(&self, replica: usize, calls: &[Call]) -> Result<Answer> {
        let answer = match calls {
            [call] => self.send_one(replica, call).await,
            calls => self.send_batch(replica, calls).await,
        };
        match answer {
            Ok(outcomes) => Ok(Some(outcomes)),
            Err(status) if is_transient(&status) => Ok(None),
            Err(status) => bail!("replica {replica} answered {status:?}"),
        }
    }

    async fn send_one(&self, replica: usize, call: &Call) -> Result<Vec<(EventOutcome, String)>, Status> {
        let request = RecordUsageRequest { event: Some(call.event()) };
        match self.replicas[replica].clone().record_usage(self.options.request(request)).await {
            Ok(answer) => Ok(vec![(answer.into_inner().outcome(), String::new())]),
            Err(status) => {
                let outcome = match (status.code(), nexus_kit::status::reason(&status).as_str()) {
                    (Code::AlreadyExists, "EVENT_CONFLICT") => EventOutcome::Conflict,
                    (Code::NotFound, "ACCOUNT_NOT_FOUND") => EventOutcome::UnknownAccount,
                    (Code::FailedPrecondition, "EVENT_TOO_OLD") => EventOutcome::TooOld,
                    _ => return Err(status),
                };
                Ok(vec![(outcome, status.message().to_owned())])
            }
        }
    }

    async fn send_batch(
        &self,
        replica: usize,
        calls: &[Call],
    ) -> Result<Vec<(EventOutcome, String)>, Status> {
        let request = BatchRecordUsageRequest { events: calls.iter().map(Call::event).collect() };
        let answer = self.replicas[replica]
            .clone()
            .batch_record_usage(self.options.request(request))
            .await?
            .into_inner();
        let mut outcomes = vec![(EventOutcome::Accepted, String::new()); calls.len()];
        for result in answer.results {
            let (outcome, message) = (result.outcome(), result.message);
            let place = usize::try_from(result.index).ok().and_then(|index| outcomes.get_mut(index));
            *place.ok_or_else(|| Status::internal("an outcome of no event"))? = (outcome, message);
        }
        Ok(outcomes)
    }
}

fn settles(entry: &Entry) -> Option<Uuid> {
    match entry {
        Entry::Acknowledged { id, .. } | Entry::Refused { id, .. } => Some(*id),
        _ => None,
    }
}
