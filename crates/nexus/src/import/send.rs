//! Accounts, the shift of the times, and events in batches, through the gRPC API.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use nexus_client::{self as client, CallOptions};
use nexus_core::{period::Period, plan::Plan};
use nexus_kit::convert;
use nexus_proto::{
    billing::v1::{
        Account, CreateAccountRequest, GetAccountRequest, ListPlansRequest, PlanVersion,
        billing_service_client::BillingServiceClient,
    },
    usage::v1::{
        BatchRecordUsageRequest, BatchRecordUsageResponse, EventOutcome, EventResult, RegisterImportRequest,
        UsageEvent, usage_service_client::UsageServiceClient,
    },
};
use sha2::{Digest, Sha256};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Builder;

use super::{
    account::hex,
    args::ImportArgs,
    lines::Lines,
    parse::{Call, Parser},
    survey::{self, Survey},
};
use crate::call;

const BATCH: usize = 10_000;
const ACCOUNTS_AT_ONCE: usize = 16;
/// A call that found a server away is made again, with the same ids, this many times in all.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Refused events told one by one; more are only counted.
const TOLD: usize = 20;

/// How the file's times become the events'.
pub(super) struct Times {
    /// Added to every time.
    pub(super) shift: TimeDelta,
    /// Where new accounts' periods begin: the file's first event.
    pub(super) anchor: DateTime<Utc>,
}

/// What became of the accounts.
pub(super) struct Accounts {
    /// Made by this import.
    pub(super) created: usize,
    /// There before.
    pub(super) existing: usize,
    /// Not there, and not asked to be made.
    pub(super) missing: usize,
    /// Plan and anchor of those that are there.
    pub(super) known: HashMap<String, (Plan, DateTime<Utc>)>,
}

/// What became of the events.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) new: u64,
    pub(super) duplicates: u64,
    /// By outcome.
    pub(super) refused: BTreeMap<&'static str, u64>,
    /// Calls by account and start of its period, refused ones left out.
    pub(super) calls: HashMap<(String, DateTime<Utc>), i64>,
}

/// The two services.
pub(super) struct Services {
    usage: UsageServiceClient<Channel>,
    billing: BillingServiceClient<Channel>,
    options: CallOptions,
}

impl Services {
    pub(super) fn new(args: &ImportArgs) -> Result<Self> {
        Ok(Self {
            usage: client::usage(args.credentials.channel(&args.usage_addr)?),
            billing: client::billing(args.credentials.channel(&args.billing_addr)?),
            options: args.credentials.options()?,
        })
    }

    /// The shift of this file, the one proposed or that of its first import, and whether it was imported
    /// before.
    pub(super) async fn register(&self, digest: &[u8; 32], proposed: TimeDelta) -> Result<(TimeDelta, bool)> {
        let request = RegisterImportRequest {
            file_digest: hex(digest),
            proposed_shift_ms: proposed.num_milliseconds(),
        };
        let answer = retried("RegisterImport", || {
            let (mut usage, request) = (self.usage.clone(), self.options.request(request.clone()));
            async move { usage.register_import(request).await }
        });
        let answer = answer.await?.into_inner();
        let shift =
            TimeDelta::try_milliseconds(answer.shift_ms).context("the file's shift is out of range")?;
        Ok((shift, answer.already_registered))
    }

    /// Says which accounts are there; with a plan and an anchor makes those that are not.
    pub(super) async fn ensure_accounts(
        &self,
        survey: &Survey,
        create: Option<(Plan, DateTime<Utc>)>,
    ) -> Result<Accounts> {
        let looked_up = stream::iter(&survey.accounts).map(|eco_id| async move {
            let created = match create {
                Some((plan, anchor)) => self.create(eco_id, plan, anchor).await?,
                None => None,
            };
            let found = match &created {
                Some(_) => None,
                None => self.find(eco_id).await?,
            };
            Ok::<_, anyhow::Error>((created, found))
        });
        let mut looked_up = looked_up.buffer_unordered(ACCOUNTS_AT_ONCE);
        let mut accounts = Accounts { created: 0, existing: 0, missing: 0, known: HashMap::new() };
        while let Some((created, found)) = looked_up.try_next().await? {
            match (&created, &found) {
                (Some(_), _) => accounts.created += 1,
                (None, Some(_)) => accounts.existing += 1,
                (None, None) => accounts.missing += 1,
            }
            if let Some(account) = created.or(found) {
                let (plan, anchor) = terms(&account)?;
                accounts.known.insert(account.eco_id, (plan, anchor));
            }
        }
        Ok(accounts)
    }

    /// The new account; `None`: there was one already.
    async fn create(&self, eco_id: &str, plan: Plan, anchor: DateTime<Utc>) -> Result<Option<Account>> {
        let request = CreateAccountRequest {
            eco_id: eco_id.to_owned(),
            plan: convert::plan_to_proto(plan).into(),
            billing_anchor_time: Some(convert::timestamp(anchor)),
            ..CreateAccountRequest::default()
        };
        let answer = retried("CreateAccount", || {
            let (mut billing, request) = (self.billing.clone(), self.options.request(request.clone()));
            async move {
                match billing.create_account(request).await {
                    Err(status) if status.code() == Code::AlreadyExists => Ok(None),
                    answer => answer.map(|a| a.into_inner().account),
                }
            }
        });
        answer.await
    }

    async fn find(&self, eco_id: &str) -> Result<Option<Account>> {
        let request = GetAccountRequest { eco_id: eco_id.to_owned() };
        let answer = retried("GetAccount", || {
            let (mut billing, request) = (self.billing.clone(), self.options.request(request.clone()));
            async move {
                match billing.get_account(request).await {
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    answer => answer.map(|a| a.into_inner().account),
                }
            }
        });
        answer.await
    }

    /// The plans as they are now.
    pub(super) async fn plans(&self) -> Result<Vec<PlanVersion>> {
        let answer = retried("ListPlans", || {
            let request = ListPlansRequest { page_size: 100, page_token: String::new() };
            let (mut billing, request) = (self.billing.clone(), self.options.request(request));
            async move { billing.list_plans(request).await }
        });
        Ok(answer.await?.into_inner().plans)
    }

    /// The second reading: sends every call.
    pub(super) async fn record(
        &self,
        args: &ImportArgs,
        parser: &Parser,
        survey: &Survey,
        times: &Times,
        accounts: &Accounts,
        bar: &ProgressBar,
    ) -> Result<Sent> {
        let context = || format!("reading {}", args.file.display());
        let mut lines = Lines::open(&args.file).with_context(context)?;
        let mut sent = Sent::default();
        let mut batch = Batch::default();
        let mut position = 0;
        while let Some(line) = lines.next().with_context(context)? {
            position = line.position;
            if let Some(Ok((account, call))) = survey::read(parser, line.text) {
                batch.add(&survey.digest, line.number, account, call, times);
                if batch.events.len() == BATCH {
                    self.send(std::mem::take(&mut batch), times, accounts, &mut sent, bar).await?;
                    bar.set_position(position);
                }
            }
        }
        ensure!(
            lines.digest() == survey.digest,
            "{} changed while it was being imported: import it again when it is complete",
            args.file.display()
        );
        if !batch.events.is_empty() {
            self.send(batch, times, accounts, &mut sent, bar).await?;
        }
        bar.set_position(position);
        Ok(sent)
    }

    async fn send(
        &self,
        batch: Batch,
        times: &Times,
        accounts: &Accounts,
        sent: &mut Sent,
        bar: &ProgressBar,
    ) -> Result<()> {
        let request = BatchRecordUsageRequest { events: batch.events };
        let answer = retried("BatchRecordUsage", || {
            let (mut usage, request) = (self.usage.clone(), self.options.request(request.clone()));
            async move { usage.batch_record_usage(request).await }
        });
        let answer: BatchRecordUsageResponse = answer.await?.into_inner();
        sent.new += count(answer.accepted_count)?;
        sent.duplicates += count(answer.duplicate_count)?;
        let mut counted = vec![true; request.events.len()];
        for result in &answer.results {
            let index = usize::try_from(result.index).ok().filter(|i| *i < counted.len());
            let index = index.context("usage-svc answered about an event that was not sent")?;
            if result.outcome() != EventOutcome::Duplicate {
                counted[index] = false;
                sent.refuse(result, batch.lines[index], bar);
            }
        }
        for (event, _) in request.events.into_iter().zip(counted).filter(|(_, counted)| *counted) {
            let time = event.event_time.as_ref().map(convert::datetime).transpose();
            let time = time.map_err(|e| anyhow!("an event's time {e}"))?.context("an event has a time")?;
            let anchor = accounts.known.get(&event.eco_id).map_or(times.anchor, |(_, anchor)| *anchor);
            *sent.calls.entry((event.eco_id, Period::containing(anchor, time).start)).or_default() += 1;
        }
        Ok(())
    }
}

fn count(n: i32) -> Result<u64> {
    u64::try_from(n).context("usage-svc answered a negative count")
}

fn terms(account: &Account) -> Result<(Plan, DateTime<Utc>)> {
    let plan = convert::plan_from_proto(account.plan).map_err(|e| anyhow!("the plan {e}"))?;
    let anchor = account.billing_anchor_time.as_ref().context("an account has an anchor")?;
    let anchor = convert::datetime(anchor).map_err(|e| anyhow!("the anchor {e}"))?;
    Ok((plan.context("an account has a plan")?, anchor))
}

impl Sent {
    fn refuse(&mut self, result: &EventResult, line: u64, bar: &ProgressBar) {
        let told: u64 = self.refused.values().sum();
        if told < TOLD as u64 {
            let (outcome, message) = (reason(result.outcome()), &result.message);
            bar.suspend(|| eprintln!("line {line}: refused, {outcome}: {message}"));
        }
        *self.refused.entry(reason(result.outcome())).or_default() += 1;
    }
}

fn reason(outcome: EventOutcome) -> &'static str {
    match outcome {
        EventOutcome::Conflict => "another event has its id",
        EventOutcome::UnknownAccount => "unknown account",
        EventOutcome::ClosedAccount => "closed account",
        EventOutcome::TooOld => "older than 35 days",
        EventOutcome::InTheFuture => "in the future",
        EventOutcome::Invalid => "invalid",
        EventOutcome::Unspecified | EventOutcome::Accepted | EventOutcome::Duplicate => "unknown reason",
    }
}

#[derive(Default)]
struct Batch {
    events: Vec<UsageEvent>,
    /// Line of each.
    lines: Vec<u64>,
}

impl Batch {
    fn add(&mut self, digest: &[u8; 32], line: u64, account: String, call: Call, times: &Times) {
        self.events.push(UsageEvent {
            eco_id: account,
            event_id: event_id(digest, line),
            event_time: Some(convert::timestamp(call.time + times.shift)),
            endpoint: call.path,
            method: call.method,
            status_code: call.status,
            response_time_ms: call.latency_ms,
            ..UsageEvent::default()
        });
        self.lines.push(line);
    }
}

/// A UUIDv8 of (digest, line): the same line of the same file is the same event.
fn event_id(digest: &[u8; 32], line: u64) -> String {
    let hash = Sha256::new().chain_update(digest).chain_update(line.to_be_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// The answer of a call. When the server is away or asks to come again, the call is made again, a bounded
/// number of times.
async fn retried<T, F>(rpc: &str, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut pause = FIRST_PAUSE;
    for left in (0..ATTEMPTS).rev() {
        match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(status) if left > 0 && client::is_transient(&status) => {
                let asked = status.get_details_retry_info().and_then(|i| i.retry_delay);
                tokio::time::sleep(asked.unwrap_or(pause).max(pause)).await;
                pause *= 2;
            }
            Err(status) => bail!("{rpc}: {}", call::explain(&status)),
        }
    }
    bail!("{rpc}: no attempt was made")
}
