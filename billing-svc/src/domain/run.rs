//! The figures of a run of ProcessOverage.

use std::str::FromStr;

use nexus_core::money::Micros;
use serde::{Deserialize, Serialize};

/// Errors that are kept and told.
pub const MAX_ERRORS: usize = 1_000;

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

/// Why an account could not be charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a run has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Accounts done with, failed ones included.
    pub processed: i32,
    /// Accounts charged.
    pub charged: i32,
    /// Accounts that failed.
    pub failed: i32,
    /// Sum charged in US dollars; charges in other currencies are in the ledger only.
    pub total: Micros,
    /// The first of the failures.
    pub errors: Vec<AccountError>,
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
    pub fn add(&mut self, result: AccountResult) {
        self.processed += 1;
        self.charged += i32::from(result.charged);
        self.total.0 = self.total.0.saturating_add(result.total.0);
        if let Some(error) = result.error {
            self.failed += 1;
            if self.errors.len() < MAX_ERRORS {
                self.errors.push(error);
            }
        }
    }
}
