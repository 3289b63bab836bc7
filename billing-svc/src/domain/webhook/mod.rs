//! Customers' webhooks: endpoints, what is sent to them and when.
//!
//! | module | what it knows |
//! |---|---|
//! | [`address`] | which addresses may be reached |
//! | [`delivery`] | deliveries, their attempts, and what becomes of one |
//! | [`event`] | the types of events, and their payloads |
//! | [`signature`] | secrets and signatures, after Standard Webhooks |
//! | [`schedule`] | when a failed delivery is tried again |
//! | [`url`] | which URLs an endpoint may have |

pub mod address;
pub mod delivery;
pub mod event;
pub mod schedule;
pub mod signature;
pub mod url;

use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::id::EcoId;
use serde_json::{Value, json};
use uuid::Uuid;

use self::event::EventType;

/// Endpoints an account may have.
pub const MAX_ENDPOINTS: i64 = 20;
/// Tests that an account may send in a day: their messages are kept as long as others.
pub const MAX_TESTS_A_DAY: i64 = 100;
/// Deliveries to an account's endpoints that are under way at once.
pub const ACCOUNT_AT_ONCE: i64 = 4;
/// Attempts of a delivery that its log has, the last ones.
pub const ATTEMPTS_KEPT: i64 = 50;
/// Characters of an endpoint's description.
pub const MAX_DESCRIPTION: usize = 256;
/// An endpoint that has failed for so long, without a success between, is disabled.
pub const DISABLE_AFTER: TimeDelta = TimeDelta::days(5);
/// Messages, with their deliveries and the log of these, are kept for so long.
pub const KEEP: TimeDelta = TimeDelta::days(30);

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Id.
    pub endpoint_id: Uuid,
    /// Account.
    pub eco_id: String,
    /// Where it is.
    pub url: String,
    /// What its owner calls it.
    pub description: String,
    /// What it is told of; empty: everything.
    pub event_types: Vec<EventType>,
    /// Why nothing is sent to it, and since when; `None`: it is enabled.
    pub disabled: Option<(DisabledReason, DateTime<Utc>)>,
    /// First failure after the last success.
    pub failing_since: Option<DateTime<Utc>>,
    /// When it was created.
    pub created_time: DateTime<Utc>,
}

/// An endpoint to be created, every field valid in itself.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Id.
    pub endpoint_id: Uuid,
    /// Account.
    pub eco_id: EcoId,
    /// Where it is.
    pub url: String,
    /// What its owner calls it.
    pub description: String,
    /// What it is told of; empty: everything.
    pub event_types: Vec<EventType>,
    /// Makes a repeat return the endpoint.
    pub request_id: Option<Uuid>,
}

impl NewEndpoint {
    /// What is asked for, as it is kept to tell a repeat from another request.
    pub fn asked(&self) -> Value {
        let types: Vec<_> = self.event_types.iter().map(|event_type| event_type.as_str()).collect();
        json!({ "url": self.url, "description": self.description, "event_types": types })
    }
}

/// What is to change of an endpoint; `None`: nothing.
#[derive(Debug, Clone, Default)]
pub struct EndpointChange {
    /// Where it is.
    pub url: Option<String>,
    /// What its owner calls it.
    pub description: Option<String>,
    /// What it is told of.
    pub event_types: Option<Vec<EventType>>,
    /// Whether it is sent to.
    pub enabled: Option<bool>,
}

/// Why nothing is sent to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisabledReason {
    /// Its owner disabled it.
    ByUser,
    /// It answered 410: it wants no more.
    Gone,
    /// It failed for too long.
    Failing,
}

impl DisabledReason {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByUser => "by_user",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// A text that names none of the words known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown word `{0}`")]
pub struct UnknownWord(String);

impl FromStr for DisabledReason {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::ByUser, Self::Gone, Self::Failing]
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}
