//! Plans and subscriptions.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A family of plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// A hard limit, no price.
    Free,
    /// An included amount, then a price per unit.
    Pro,
    /// No limit.
    Enterprise,
}

impl Plan {
    /// All of them, cheapest first.
    pub const ALL: [Plan; 3] = [Plan::Free, Plan::Pro, Plan::Enterprise];

    /// The word in the database, in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Plan::Free => "free",
            Plan::Pro => "pro",
            Plan::Enterprise => "enterprise",
        }
    }
}

/// A text that names no plan or status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{text}`, expected one of {expected}")]
pub struct UnknownWord {
    what: &'static str,
    text: String,
    expected: &'static str,
}

impl FromStr for Plan {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Plan::ALL.into_iter().find(|p| p.as_str() == text).ok_or_else(|| UnknownWord {
            what: "plan",
            text: text.to_owned(),
            expected: "free, pro, enterprise",
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// State of a subscription, in Stripe's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStatus {
    /// In a trial.
    Trialing,
    /// Paid.
    Active,
    /// A payment failed and is being retried.
    PastDue,
    /// Retries are exhausted.
    Unpaid,
    /// Collection is paused.
    Paused,
    /// The first payment is outstanding.
    Incomplete,
    /// The first payment never came.
    IncompleteExpired,
    /// Ended.
    Canceled,
}

impl SubscriptionStatus {
    /// All of them.
    pub const ALL: [SubscriptionStatus; 8] = [
        Self::Trialing,
        Self::Active,
        Self::PastDue,
        Self::Unpaid,
        Self::Paused,
        Self::Incomplete,
        Self::IncompleteExpired,
        Self::Canceled,
    ];

    /// Stripe's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Paused => "paused",
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Canceled => "canceled",
        }
    }

    /// Whether the plan's own limits and prices hold; else the free plan's limits do and no new overage
    /// accrues.
    pub fn grants_plan(self) -> bool {
        matches!(self, Self::Trialing | Self::Active | Self::PastDue)
    }
}

impl FromStr for SubscriptionStatus {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| UnknownWord {
            what: "subscription status",
            text: text.to_owned(),
            expected: "trialing, active, past_due, unpaid, paused, incomplete, incomplete_expired, canceled",
        })
    }
}

impl fmt::Display for SubscriptionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
