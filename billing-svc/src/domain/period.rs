//! An account's period: its key, why it is parked, whether a run has to look at it.

use chrono::{DateTime, Utc};
use nexus_core::money::{self, Currency, Micros, OutOfRange};

/// An account's period, by its start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeriodKey {
    /// Account.
    pub eco_id: String,
    /// Start of the period.
    pub start: DateTime<Utc>,
}

/// Why a period takes no charge, until that is mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParkReason {
    /// The account has no customer at Stripe.
    NoStripeCustomer,
    /// The plan has no price in the account's currency.
    NoPriceInCurrency,
    /// What it costs is more than can be counted.
    AmountOutOfRange,
    /// Stripe refused a charge for good, with this word.
    Refused(String),
}

impl ParkReason {
    /// As it is kept, and told.
    pub fn as_str(&self) -> &str {
        match self {
            Self::NoStripeCustomer => "NO_STRIPE_CUSTOMER",
            Self::NoPriceInCurrency => "NO_PRICE_IN_CURRENCY",
            Self::AmountOutOfRange => "AMOUNT_OUT_OF_RANGE",
            Self::Refused(word) => word,
        }
    }
}

impl From<String> for ParkReason {
    fn from(word: String) -> Self {
        [Self::NoStripeCustomer, Self::NoPriceInCurrency, Self::AmountOutOfRange]
            .into_iter()
            .find(|reason| reason.as_str() == word)
            .unwrap_or(Self::Refused(word))
    }
}

/// A period that a run may have to look at, as the summary shows it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Account and start of the period.
    pub key: PeriodKey,
    /// Currency of the amounts.
    pub currency: Currency,
    /// Exact cost of the overage.
    pub overage: Micros,
    /// Σ of the ledger.
    pub billed: Micros,
    /// Whether a charge is in doubt.
    pub pending: bool,
    /// Whether the period is past its settlement time.
    pub settling: bool,
    /// Whether it was past that once, and goes on.
    pub rounded: bool,
    /// Whether there is overage that the plan has no price for, or that costs more than can be counted.
    pub unpriced: bool,
}

impl Candidate {
    /// Whether there is something to do: a charge to make or to resolve, or a period to settle.
    pub fn owes(&self) -> Result<bool, OutOfRange> {
        let due = money::due(self.overage, self.currency.minor_unit(), self.settling || self.rounded)?;
        Ok(self.pending || self.settling || due != self.billed || self.unpriced)
    }
}
