//! Asks usage-svc for units of an account's quota: one call of `CheckQuota` each, or, with [`Guard::leased`], for busy
//! accounts many at a time, which are then used one by one without a call.

mod lease;
mod rest;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use nexus_proto::usage::v1::{
    CheckQuotaRequest, CheckQuotaResponse, usage_service_client::UsageServiceClient,
};
use tonic::{Code, Status, metadata::MetadataMap, transport::Channel};
use tonic_types::StatusExt;

use crate::{
    clock::ServerClock,
    credentials::Credentials,
    headers::{self, Quota},
    is_made_here, is_transient, usage,
};
use lease::Leases;
use rest::{Rests, Trouble};

pub use lease::LeaseReport;

/// The answer of a check.
#[derive(Debug, Clone)]
pub enum Decision {
    /// The units are admitted.
    Admitted(Admitted),
    /// They are not; nothing is consumed.
    Refused(Box<Refused>),
}

/// Units that may be used.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// For `UsageEvent.admission` of the call, so that recording it does not consume again.
    pub admission: String,
    /// What is left.
    pub quota: Quota,
}

/// What refuses calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The units that the plan includes are used, and it allows no others.
    PlanLimit,
    /// The plan bills what is beyond the included units, and the account's spend cap is reached.
    SpendCap,
}

impl RefusalReason {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PlanLimit => "plan_limit_reached",
            Self::SpendCap => "spend_cap_reached",
        }
    }

    /// A server of before there were caps gives none.
    fn of(word: Option<&String>) -> Self {
        if word.is_some_and(|word| word == Self::SpendCap.as_str()) {
            Self::SpendCap
        } else {
            Self::PlanLimit
        }
    }
}

/// A quota that is used up.
#[derive(Debug, Clone)]
pub struct Refused {
    /// What refuses.
    pub reason: RefusalReason,
    /// What is left in it is less than was asked for.
    pub quota: Quota,
    /// Units consumed.
    pub current_usage: i64,
    /// When to come back, where that may be before the reset.
    pub retry: Option<Duration>,
    /// Where to upgrade, or to raise the cap.
    pub upgrade_url: String,
    /// The whole answer, as a gRPC service passes it on.
    pub status: Status,
}

impl Refused {
    /// What a refusal of `CheckQuota` tells; `None`: it is another status, or lacks the figures.
    pub fn of(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.reason == "QUOTA_EXCEEDED")?;
        let number = |key: &str| info.metadata.get(key)?.parse::<i64>().ok();
        let time = |key: &str| info.metadata.get(key)?.parse::<DateTime<Utc>>().ok();
        let (limit, current_usage) = (number("limit")?, number("current_usage")?);
        let quota = Quota {
            policy: headers::policy(info.metadata.get("plan")?),
            limit,
            remaining: limit.saturating_sub(current_usage).max(0),
            period_start: time("period_start")?,
            period_end: time("period_end")?,
        };
        Some(Self {
            reason: RefusalReason::of(info.metadata.get("reason")),
            quota,
            current_usage,
            retry: details.retry_info().and_then(|info| info.retry_delay),
            upgrade_url: details.help()?.links.first()?.url.clone(),
            status: status.clone(),
        })
    }
}

/// Why there is no decision.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuardError {
    /// usage-svc is away, late or overloaded.
    #[error("usage-svc is unavailable: {0}")]
    Unavailable(String),
    /// There is no such account.
    #[error("the account is unknown: {0}")]
    UnknownAccount(String),
    /// The account is closed.
    #[error("the account is closed: {0}")]
    ClosedAccount(String),
    /// Our own credentials or request are at fault, or the answer is not one of this contract.
    #[error("the check failed: {0}")]
    Failed(String),
}

/// Asks for units. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Guard {
    client: UsageServiceClient<Channel>,
    credentials: Credentials,
    timeout: Duration,
    rests: Arc<Rests>,
    clock: ServerClock,
    leases: Option<Leases>,
}

impl Guard {
    /// Asks over this channel ([`crate::channel`]), with the scope `usage.check` or an account's own API key.
    /// A check takes 500 ms at most.
    pub fn new(channel: Channel, credentials: Credentials) -> Self {
        let timeout = Duration::from_millis(500);
        let (rests, clock) = (Arc::default(), ServerClock::default());
        Self { client: usage(channel), credentials, timeout, rests, clock, leases: None }
    }

    /// Longest time that a check may take. A check holds up the call it is for.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Holds units of accounts that are checked often, of so many at a time (512 at most), each over a stream. Their
    /// checks are then decided in this process, without a call; others still ask, and so does every check for which
    /// the held units do not suffice, so that a limit stays exact. What is held lasts
    /// about half a second where units are limited, goes back when somebody else needs it, the plan changes, or
    /// nobody asks for it; while usage-svc is away it is used up, for a minute at most. End the program with
    /// [`Guard::shutdown`]: units that were not given back are lost to their account for the period.
    #[must_use]
    pub fn leased(mut self, max_accounts: usize) -> Self {
        let (client, credentials) = (self.client.clone(), self.credentials.clone());
        self.leases = Some(Leases::new(client, credentials, self.clock.clone(), max_accounts));
        self
    }

    /// The server's clock, as the answers to checks tell it.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// Gives back all units that are held, until the deadline. From then on every check asks. Clones hold nothing
    /// any more either.
    pub async fn shutdown(&self, deadline: Duration) -> LeaseReport {
        match &self.leases {
            Some(leases) => leases.shutdown(deadline).await,
            None => LeaseReport { forfeited_units: 0 },
        }
    }

    /// Asks for units, all or none; from those that are held, where there are any. It asks once: a retry elsewhere
    /// could consume twice. For a second after a check without a decision, further ones of that account fail at once,
    /// and those of every account where usage-svc cannot be reached or answers nobody: an outage does not slow every
    /// call down.
    pub async fn check(&self, eco_id: &str, units_count: i64) -> Result<Decision, GuardError> {
        self.check_with(eco_id, units_count, MetadataMap::new()).await
    }

    /// The same with metadata for the call, where one is made, e.g. the trace that the check belongs to.
    pub async fn check_with(
        &self,
        eco_id: &str,
        units_count: i64,
        metadata: MetadataMap,
    ) -> Result<Decision, GuardError> {
        if let Some(admitted) = self.leases.as_ref().and_then(|leases| leases.admit(eco_id, units_count)) {
            return Ok(Decision::Admitted(admitted));
        }
        if self.rests.rests(eco_id, Instant::now()) {
            return Err(GuardError::Unavailable("it was away a moment ago".to_owned()));
        }
        let request = CheckQuotaRequest { eco_id: eco_id.to_owned(), units_count, ..Default::default() };
        let options = self.credentials.options(self.timeout).map_err(|s| GuardError::Failed(describe(&s)))?;
        let mut client = self.client.clone();
        let answer =
            tokio::time::timeout(self.timeout, client.check_quota(options.request_with(metadata, request)))
                .await;
        let Ok(answer) = answer else {
            self.rests.failed(eco_id, Trouble::Late, Instant::now());
            return Err(GuardError::Unavailable("no answer in time".to_owned()));
        };
        let (decided, trouble) = match answer {
            Ok(response) => {
                let response = response.into_inner();
                self.clock.note(response.server_time.as_ref());
                (admitted(response).map(Decision::Admitted), Trouble::Told)
            }
            Err(status) => {
                self.clock.note_time(server_time(&status));
                let trouble = trouble(&status);
                (refusal(status), trouble)
            }
        };
        match decided {
            Err(GuardError::Unavailable(_)) => self.rests.failed(eco_id, trouble, Instant::now()),
            _ => self.rests.decided(),
        }
        decided
    }
}

/// What a check without a decision says of others.
fn trouble(status: &Status) -> Trouble {
    match status.code() {
        _ if is_made_here(status) => Trouble::Unreachable,
        Code::DeadlineExceeded => Trouble::Late,
        _ => Trouble::Told,
    }
}

/// The server's clock in a refusal.
fn server_time(status: &Status) -> Option<DateTime<Utc>> {
    status.get_error_details().error_info()?.metadata.get("server_time")?.parse().ok()
}

fn admitted(response: CheckQuotaResponse) -> Result<Admitted, GuardError> {
    let malformed = || GuardError::Failed("the answer has no period".to_owned());
    let quota = Quota::of(&response).ok_or_else(malformed)?;
    Ok(Admitted { admission: response.admission, quota })
}

fn refusal(status: Status) -> Result<Decision, GuardError> {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
    if is_transient(&status) {
        return Err(GuardError::Unavailable(describe(&status)));
    }
    match (status.code(), reason) {
        (Code::ResourceExhausted, "QUOTA_EXCEEDED") => match Refused::of(&status) {
            Some(refused) => Ok(Decision::Refused(Box::new(refused))),
            None => Err(GuardError::Failed(format!("a refusal without its figures: {}", status.message()))),
        },
        (Code::NotFound, _) => Err(GuardError::UnknownAccount(describe(&status))),
        (Code::FailedPrecondition, "ACCOUNT_CLOSED") => Err(GuardError::ClosedAccount(describe(&status))),
        (Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented, _) => {
            Err(GuardError::Failed(describe(&status)))
        }
        _ => Err(GuardError::Unavailable(describe(&status))),
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
