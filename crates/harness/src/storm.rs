//! Checks of one account, a few at a time and then thousands at once, and what was answered.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use chrono::Utc;
use nexus_client::{CallOptions, is_transient};
use nexus_kit::convert::timestamp;
use nexus_proto::usage::v1::*;
use rand::{Rng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;
use usage_service_client::UsageServiceClient;
use uuid::Uuid;

use crate::limit::ACCOUNT;

/// Longer than any replica is stopped, so that its calls are answered and not given up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Pause of a call that was not answered, before it is tried at the next replica.
const PAUSE: Duration = Duration::from_millis(50);
/// After a refusal that says nothing else, or something far away: units may come back sooner.
const AGAIN: Duration = Duration::from_millis(100);

/// The checks and their answers so far.
pub(crate) struct Storm(Arc<Shared>);

struct Shared {
    replicas: Vec<UsageServiceClient<Channel>>,
    options: CallOptions,
    /// Of calls that are not recorded yet.
    admissions: Mutex<Vec<String>>,
    admitted: AtomicU32,
    unanswered: AtomicU32,
    answered: watch::Sender<u32>,
}

impl Storm {
    /// At the replicas with these addresses.
    pub(crate) fn new(urls: &[&str], options: CallOptions) -> Result<Self> {
        let replicas = urls.iter().map(|url| Ok(nexus_client::usage(nexus_client::channel(url)?)));
        Ok(Self(Arc::new(Shared {
            replicas: replicas.collect::<Result<_>>()?,
            options,
            admissions: Mutex::default(),
            admitted: AtomicU32::new(0),
            unanswered: AtomicU32::new(0),
            answered: watch::Sender::new(0),
        })))
    }

    /// Makes the `first` checks a few at a time, so that every replica comes to hold units that it has not spent,
    /// then so many more at once, spread at random. Returns when each is admitted or refused.
    pub(crate) async fn run(&self, first: u32, at_once: u32, mut rng: StdRng) -> Result<()> {
        let begun = Arc::new(AtomicU32::new(0));
        let mut calls = JoinSet::new();
        let lanes = 2 * self.0.replicas.len();
        for lane in 0..lanes {
            let (shared, begun) = (self.0.clone(), begun.clone());
            calls.spawn(async move {
                while begun.fetch_add(1, Ordering::Relaxed) < first {
                    shared.insist(lane % shared.replicas.len()).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        // The last ones may hang at a replica that is stopped.
        self.reached(first.saturating_sub(u32::try_from(lanes)?)).await;
        for _ in 0..at_once {
            let replica = rng.random_range(0..self.0.replicas.len());
            let shared = self.0.clone();
            calls.spawn(async move { shared.insist(replica).await });
        }
        while let Some(called) = calls.join_next().await {
            called??;
        }
        Ok(())
    }

    /// Returns once so many checks are answered.
    pub(crate) async fn reached(&self, answered: u32) {
        // The sender is ours, so it is there.
        drop(self.0.answered.subscribe().wait_for(|done| *done >= answered).await);
    }

    /// Checks one after the other at the first replica until one is refused; returns when to come again.
    pub(crate) async fn drain(&self) -> Result<Duration> {
        loop {
            match self.0.check(0).await {
                Ok(()) => {}
                Err(status) if status.code() == Code::ResourceExhausted => {
                    return Ok(retry_delay(&status).unwrap_or(AGAIN).min(AGAIN));
                }
                Err(status) => self.0.failed(&status).await?,
            }
        }
    }

    /// Records the calls that were admitted.
    pub(crate) async fn record(&self) -> Result<()> {
        let time = Utc::now();
        let event = |admission: String| UsageEvent {
            eco_id: ACCOUNT.to_owned(),
            event_id: Uuid::new_v4().to_string(),
            event_time: Some(timestamp(time)),
            endpoint: "/v1/reports".to_owned(),
            method: "GET".to_owned(),
            status_code: 200,
            admission,
            ..Default::default()
        };
        let events: Vec<UsageEvent> = self.0.admissions().drain(..).map(event).collect();
        if events.is_empty() {
            return Ok(());
        }
        let mut client = self.0.replicas[0].clone();
        let answer = client.batch_record_usage(self.0.options.request(BatchRecordUsageRequest { events }));
        let refused = answer.await?.into_inner().results;
        ensure!(refused.is_empty(), "calls that were admitted are not recorded: {refused:?}");
        Ok(())
    }

    /// What the first replica says of the account.
    pub(crate) async fn usage(&self) -> Result<GetCurrentUsageResponse> {
        let request = GetCurrentUsageRequest { eco_id: ACCOUNT.to_owned() };
        let mut client = self.0.replicas[0].clone();
        Ok(client.get_current_usage(self.0.options.request(request)).await?.into_inner())
    }

    /// Checks that were answered OK.
    pub(crate) fn admitted(&self) -> i64 {
        i64::from(self.0.admitted.load(Ordering::SeqCst))
    }

    /// Calls that got no answer, or that they should come again; they were made again.
    pub(crate) fn unanswered(&self) -> u32 {
        self.0.unanswered.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// One check, at whichever replica answers.
    async fn insist(&self, mut replica: usize) -> Result<()> {
        loop {
            match self.check(replica).await {
                Err(status) if status.code() != Code::ResourceExhausted => self.failed(&status).await?,
                _answered => {
                    self.answered.send_modify(|answered| *answered += 1);
                    return Ok(());
                }
            }
            replica = (replica + 1) % self.replicas.len();
        }
    }

    async fn check(&self, replica: usize) -> Result<(), Status> {
        let mut client = self.replicas[replica].clone();
        let request = CheckQuotaRequest { eco_id: ACCOUNT.to_owned(), ..Default::default() };
        let answer = client.check_quota(self.options.request(request)).await?.into_inner();
        self.admissions().push(answer.admission);
        self.admitted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn failed(&self, status: &Status) -> Result<()> {
        if !is_transient(status) {
            bail!("CheckQuota was answered {status:?}");
        }
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(retry_delay(status).unwrap_or(PAUSE)).await;
        Ok(())
    }

    fn admissions(&self) -> MutexGuard<'_, Vec<String>> {
        self.admissions.lock().expect("nothing panics while it holds this")
    }
}

/// When the server wants to be asked again.
fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay)
}
