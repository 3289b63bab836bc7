//! The figures of a run of ProcessOverage.

use nexus_core::money::Micros;
use serde::{Deserialize, Serialize};

/// Errors that are kept and told.
pub const MAX_ERRORS: usize = 1_000;

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
