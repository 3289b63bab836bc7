//! What a reconciliation looks at, and what it finds.

use std::{collections::BTreeMap, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::money::Micros;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Differences that are kept and told.
pub const MAX_DIFFERENCES: usize = 1_000;

/// Without a time, the periods that began so long ago at most are compared: each account's current one and the
/// one before it.
pub const LOOK_BACK: TimeDelta = TimeDelta::days(64);

/// By how much Stripe's clock and the database's may differ.
pub const CLOCK_MARGIN: TimeDelta = TimeDelta::days(1);

/// How a reconciliation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is at work, or was when its process ended.
    Running,
    /// Everything was compared.
    Finished,
    /// It was cut short.
    Failed,
}

impl Status {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// A text that names nothing known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown word of a reconciliation `{0}`")]
pub struct UnknownWord(String);

impl FromStr for Status {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Running, Self::Finished, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// What is compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only these accounts; `None`: all.
    pub accounts: Option<Vec<String>>,
    /// Only periods that this instant lies in; `None`: those of the last [`LOOK_BACK`].
    pub period_time: Option<DateTime<Utc>>,
}

impl Scope {
    /// Whether it is all that is compared every day.
    pub fn is_whole(&self) -> bool {
        self.accounts.is_none() && self.period_time.is_none()
    }

    /// The periods that are compared begin at this time or later, as seen at `now`. No period is longer than
    /// 31 days.
    pub fn first_start(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self.period_time {
            Some(at) => at - TimeDelta::days(31),
            None => now - LOOK_BACK,
        }
    }

    /// Whether a period is among those compared, as far as its times tell.
    pub fn has_period(&self, start: DateTime<Utc>, end: DateTime<Utc>) -> bool {
        self.period_time.is_none_or(|at| start <= at && at < end)
    }
}

/// What two records of one fact differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// The raw log and the counters have different sums.
    EventsCountersDiffer,
    /// A segment that a change of plan has closed no longer has the units it was closed with.
    SegmentCountersDiffer,
    /// The summary says something else than what follows from the counters.
    CountersSummaryDiffer,
    /// The summary's copy of the ledger's sum is not that sum.
    LedgerSumDiffers,
    /// A period was settled, and its charges are not what it owes.
    SettledDiffers,
    /// The ledger has an item that Stripe has not.
    ItemMissing,
    /// Stripe has an item of ours that the ledger has not.
    ItemExtra,
    /// Stripe has an item of ours on a customer, or in a currency, that its account does not have.
    ItemStray,
    /// Stripe has an item of an account that is not here.
    ItemOfNoAccount,
    /// Stripe has a charge more often than the ledger.
    ItemDuplicated,
    /// Stripe has a charge as another item than the ledger says.
    ItemIdDiffers,
    /// The item has another amount.
    ItemAmountDiffers,
    /// The item is on another customer.
    ItemWrongCustomer,
    /// The item says that it is another account's.
    ItemWrongAccount,
    /// The item says that it is another period's.
    ItemWrongPeriod,
    /// The item is in another currency.
    ItemWrongCurrency,
    /// The item says that it is another charge's, or none's.
    ItemWrongCharge,
    /// The item says something else, or another number of calls.
    ItemTextDiffers,
    /// The item is on no invoice that is final, longer than is to be expected.
    ItemOnNoFinalisedInvoice,
    /// Runs should have found out long ago whether Stripe has the charge.
    ChargeInDoubt,
    /// A period should have been settled long ago, and its charges are not what it owes.
    SettlementOverdue,
    /// A subscription stands otherwise at Stripe than our tables say.
    SubscriptionDiffers,
    /// Stripe has a subscription of the account that our tables have not.
    SubscriptionExtra,
    /// The account's subscription is not at Stripe.
    SubscriptionMissing,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 24] = [
        Self::EventsCountersDiffer,
        Self::SegmentCountersDiffer,
        Self::CountersSummaryDiffer,
        Self::LedgerSumDiffers,
        Self::SettledDiffers,
        Self::ItemMissing,
        Self::ItemExtra,
        Self::ItemStray,
        Self::ItemOfNoAccount,
        Self::ItemDuplicated,
        Self::ItemIdDiffers,
        Self::ItemAmountDiffers,
        Self::ItemWrongCustomer,
        Self::ItemWrongAccount,
        Self::ItemWrongPeriod,
        Self::ItemWrongCurrency,
        Self::ItemWrongCharge,
        Self::ItemTextDiffers,
        Self::ItemOnNoFinalisedInvoice,
        Self::ChargeInDoubt,
        Self::SettlementOverdue,
        Self::SubscriptionDiffers,
        Self::SubscriptionExtra,
        Self::SubscriptionMissing,
    ];

    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EventsCountersDiffer => "EVENTS_COUNTERS_DIFFER",
            Self::SegmentCountersDiffer => "SEGMENT_COUNTERS_DIFFER",
            Self::CountersSummaryDiffer => "COUNTERS_SUMMARY_DIFFER",
            Self::LedgerSumDiffers => "LEDGER_SUM_DIFFERS",
            Self::SettledDiffers => "SETTLED_DIFFERS",
            Self::ItemMissing => "ITEM_MISSING",
            Self::ItemExtra => "ITEM_EXTRA",
            Self::ItemStray => "ITEM_STRAY",
            Self::ItemOfNoAccount => "ITEM_OF_NO_ACCOUNT",
            Self::ItemDuplicated => "ITEM_DUPLICATED",
            Self::ItemIdDiffers => "ITEM_ID_DIFFERS",
            Self::ItemAmountDiffers => "ITEM_AMOUNT_DIFFERS",
            Self::ItemWrongCustomer => "ITEM_WRONG_CUSTOMER",
            Self::ItemWrongAccount => "ITEM_WRONG_ACCOUNT",
            Self::ItemWrongPeriod => "ITEM_WRONG_PERIOD",
            Self::ItemWrongCurrency => "ITEM_WRONG_CURRENCY",
            Self::ItemWrongCharge => "ITEM_WRONG_CHARGE",
            Self::ItemTextDiffers => "ITEM_TEXT_DIFFERS",
            Self::ItemOnNoFinalisedInvoice => "ITEM_ON_NO_FINALISED_INVOICE",
            Self::ChargeInDoubt => "CHARGE_IN_DOUBT",
            Self::SettlementOverdue => "SETTLEMENT_OVERDUE",
            Self::SubscriptionDiffers => "SUBSCRIPTION_DIFFERS",
            Self::SubscriptionExtra => "SUBSCRIPTION_EXTRA",
            Self::SubscriptionMissing => "SUBSCRIPTION_MISSING",
        }
    }

    /// Whether the ledger and Stripe disagree about which charges there are: then something could be charged
    /// twice, or be taken for charged. What an item says of itself does not count: the ledger has it by its id; nor does
    /// an item that no charge of the account could double, for it is not there, or somebody else has it.
    pub fn is_of_ledger_and_stripe(self) -> bool {
        match self {
            Self::EventsCountersDiffer
            | Self::SegmentCountersDiffer
            | Self::CountersSummaryDiffer
            | Self::LedgerSumDiffers
            | Self::SettledDiffers
            | Self::ItemStray
            | Self::ItemOfNoAccount
            | Self::ItemWrongAccount
            | Self::ItemWrongPeriod
            | Self::ItemWrongCharge
            | Self::ItemTextDiffers
            | Self::ItemOnNoFinalisedInvoice
            | Self::ChargeInDoubt
            | Self::SettlementOverdue
            | Self::SubscriptionDiffers
            | Self::SubscriptionExtra
            | Self::SubscriptionMissing => false,
            Self::ItemMissing
            | Self::ItemExtra
            | Self::ItemDuplicated
            | Self::ItemIdDiffers
            | Self::ItemAmountDiffers
            | Self::ItemWrongCustomer
            | Self::ItemWrongCurrency => true,
        }
    }

    /// Whether it is of an item whose account, or whose account's customer, may have been lost.
    pub fn may_lack_customer(self) -> bool {
        matches!(self, Self::ItemOfNoAccount | Self::ItemStray)
    }
}

/// One difference between two records of the same fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Account; empty: the item does not say whose it is.
    pub eco_id: String,
    /// What differs.
    pub kind: Kind,
    /// The two sides in a sentence.
    pub message: String,
    /// Size in money, second side less first; 0 where it is not money.
    #[serde(with = "micros")]
    pub amount: Micros,
    /// ISO 4217.
    pub currency: String,
    /// Start of the period, where it is known.
    pub period_start: Option<DateTime<Utc>>,
    /// The charge, as text; empty: none.
    pub charge_id: String,
    /// The item at Stripe; empty: none.
    pub item_id: String,
    /// Whether it was repaired.
    pub repaired: bool,
}

mod micros {
    use nexus_core::money::Micros;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(amount: &Micros, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(amount.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
        i64::deserialize(deserializer).map(Micros)
    }
}

/// What a reconciliation has found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Accounts compared.
    pub accounts: i64,
    /// Periods compared.
    pub periods: i64,
    /// Items of ours that Stripe has.
    pub items: i64,
    /// Differences, repaired ones included.
    pub total: i64,
    /// Those repaired.
    pub repaired: i64,
    /// Those that are left, by kind.
    pub drift: BTreeMap<Kind, i64>,
    /// The first of the differences.
    pub differences: Vec<Difference>,
}

impl Findings {
    /// Adds a difference.
    pub fn add(&mut self, difference: Difference) {
        self.total += 1;
        if difference.repaired {
            self.repaired += 1;
        } else {
            *self.drift.entry(difference.kind).or_default() += 1;
        }
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(difference);
        }
    }

    /// Whether ledger and Stripe agree about which charges there are.
    pub fn ledger_is_whole(&self) -> bool {
        !self.drift.keys().any(|kind| kind.is_of_ledger_and_stripe())
    }
}

/// A reconciliation in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Id.
    pub reconciliation_id: Uuid,
    /// How it is.
    pub status: Status,
    /// Whether it was limited to some accounts or periods.
    pub limited: bool,
    /// Whether what could be repaired was.
    pub repair: bool,
    /// Accounts compared.
    pub accounts: i64,
    /// Periods compared.
    pub periods: i64,
    /// Items of ours that Stripe has.
    pub items: i64,
    /// Differences, repaired ones included.
    pub differences: i64,
    /// Those repaired.
    pub repaired: i64,
    /// Those that are left, by kind.
    pub left: BTreeMap<Kind, i64>,
    /// When it was last begun.
    pub started_time: DateTime<Utc>,
    /// When it ended.
    pub finished_time: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_kept_as_the_word_it_is_told_as() -> Result<(), serde_json::Error> {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_string(&kind)?, format!("\"{}\"", kind.as_str()));
        }
        Ok(())
    }

    #[test]
    fn only_what_is_left_is_drift_and_only_the_first_are_kept() {
        let mut findings = Findings::default();
        let difference = |kind, repaired| Difference {
            eco_id: "eco_a".to_owned(),
            kind,
            message: String::new(),
            amount: Micros(0),
            currency: "USD".to_owned(),
            period_start: None,
            charge_id: String::new(),
            item_id: String::new(),
            repaired,
        };
        findings.add(difference(Kind::ItemExtra, true));
        assert!(findings.ledger_is_whole());
        for _ in 0..MAX_DIFFERENCES {
            findings.add(difference(Kind::EventsCountersDiffer, false));
        }
        assert!(findings.ledger_is_whole());
        findings.add(difference(Kind::ItemMissing, false));
        assert!(!findings.ledger_is_whole());
        assert_eq!((findings.total, findings.repaired, findings.differences.len()), (1_002, 1, 1_000));
        assert_eq!(
            findings.drift,
            BTreeMap::from([(Kind::EventsCountersDiffer, 1_000), (Kind::ItemMissing, 1)])
        );
    }
}
