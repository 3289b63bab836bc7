//! The figures of a run of ProcessOverage.

use std::{collections::BTreeMap, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::money::Micros;
use uuid::Uuid;

/// Errors that an answer tells; the rest is listed.
pub const MAX_ERRORS: usize = 1_000;

/// A run at work gives a sign of life every few seconds; one that was silent for so long was cut off.
pub const LONGEST_SILENCE: TimeDelta = TimeDelta::seconds(30);

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStatus {
    /// It is at work, or was when its process ended.
    Running,
    /// It looked at every account that owed.
    Finished,
    /// It was cut short.
    Failed,
}

impl RunStatus {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// A text that names no status of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown status of a run `{0}`")]
pub struct UnknownRunStatus(String);

impl FromStr for RunStatus {
    type Err = UnknownRunStatus;

    fn from_str(text: &str) -> Result<Self, UnknownRunStatus> {
        [Self::Running, Self::Finished, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownRunStatus(text.to_owned()))
    }
}

/// A run as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Id.
    pub run_id: Uuid,
    /// How far it is.
    pub status: RunStatus,
    /// Its figures.
    pub figures: Figures,
    /// Whether it was limited to some accounts.
    pub limited: bool,
    /// When it was last begun.
    pub started_time: DateTime<Utc>,
    /// Its last sign of life.
    pub heartbeat_time: DateTime<Utc>,
    /// When it ended.
    pub finished_time: Option<DateTime<Utc>>,
    /// Database time of the reading.
    pub now: DateTime<Utc>,
}

impl Run {
    /// How long it has taken, or took, since it was last begun.
    pub fn duration_ms(&self) -> i64 {
        (self.finished_time.unwrap_or(self.now) - self.started_time).num_milliseconds()
    }

    /// Whether its process ended without a word.
    pub fn is_cut_off(&self) -> bool {
        self.status == RunStatus::Running && self.now - self.heartbeat_time > LONGEST_SILENCE
    }
}

/// Why an account could not be charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountError {
    /// Account.
    pub eco_id: String,
    /// Reason as a word.
    pub reason: String,
    /// Reason in a sentence.
    pub message: String,
}

impl AccountError {
    /// Reason as a word, and in a sentence.
    pub fn new(eco_id: &str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { eco_id: eco_id.to_owned(), reason: reason.into(), message: message.into() }
    }
}

/// Sums by currency: currencies are not added up.
pub type Totals = BTreeMap<String, Micros>;

/// What a run has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Accounts with something to do, as far as is known: those when it began, or more.
    pub accounts: i32,
    /// Accounts done with, failed ones included.
    pub processed: i32,
    /// Accounts charged.
    pub charged: i32,
    /// Accounts that failed.
    pub failed: i32,
    /// Sum charged in US dollars; charges in other currencies are in the ledger only.
    pub total: Micros,
}

/// What became of one account in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountResult {
    /// Whether at least one charge came to be at Stripe.
    pub charged: bool,
    /// Sum of those in US dollars.
    pub total: Micros,
    /// Why it went no further.
    pub error: Option<AccountError>,
}

impl Figures {
    /// Adds an account.
    pub fn add(&mut self, result: &AccountResult) {
        self.processed += 1;
        self.charged += i32::from(result.charged);
        self.failed += i32::from(result.error.is_some());
        self.total.0 = self.total.0.saturating_add(result.total.0);
    }

    /// Takes an account back that is looked at again.
    pub fn take_back(&mut self, had_failed: bool) {
        self.processed -= 1;
        self.failed -= i32::from(had_failed);
    }

    /// All accounts that are known of: some may have begun to owe since the run began.
    pub fn known(&self) -> i32 {
        self.accounts.max(self.processed)
    }
}
