//! A message on its way to an endpoint.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{DISABLE_AFTER, DisabledReason, UnknownWord, event::EventType, schedule};

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// It is to be tried, for the first time or again.
    Pending,
    /// The endpoint has it.
    Succeeded,
    /// It was tried as often as it is, or refused for good.
    Failed,
}

impl DeliveryStatus {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for DeliveryStatus {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Pending, Self::Succeeded, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// A delivery, with its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message_id: Uuid,
    /// The endpoint.
    pub endpoint_id: Uuid,
    /// Type of the message.
    pub event_type: EventType,
    /// What was, or is to be, sent.
    pub payload: String,
    /// How far it is.
    pub status: DeliveryStatus,
    /// Whether it waits until its endpoint is enabled.
    pub held: bool,
    /// When it is tried next, unless it is held.
    pub due_time: DateTime<Utc>,
    /// When it was begun.
    pub created_time: DateTime<Utc>,
    /// When it was over.
    pub finished_time: Option<DateTime<Utc>>,
    /// Its last attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

/// One request to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Number, from 1.
    pub attempt: i32,
    /// When it was begun.
    pub started_time: DateTime<Utc>,
    /// How long it took; `None`: it is under way, or its process ended before it was known.
    pub duration_ms: Option<i32>,
    /// What the endpoint answered.
    pub http_status: Option<i32>,
    /// Why it failed, as a word.
    pub error: Option<String>,
}

/// Why a request has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The URL may not be sent to any more: the configuration has changed.
    #[error("URL_NOT_ALLOWED")]
    Url,
    /// The name is unknown, or its server does not answer.
    #[error("NAME_NOT_RESOLVED")]
    Name,
    /// The name leads to nothing but addresses that may not be reached.
    #[error("ADDRESS_NOT_ALLOWED")]
    Address,
    /// No connection.
    #[error("CONNECT_FAILED")]
    Connect,
    /// No TLS: the certificate does not hold, say.
    #[error("TLS_FAILED")]
    Tls,
    /// The connection was cut, or what came over it is no HTTP.
    #[error("NO_ANSWER")]
    NoAnswer,
    /// Not in time.
    #[error("TIMEOUT")]
    Timeout,
    /// An answer that is no success; redirects are not followed.
    #[error("HTTP_STATUS")]
    Status {
        /// Its status.
        status: u16,
        /// When to try again, if it says so.
        retry_after: Option<Duration>,
    },
}

impl Failure {
    /// Status of the answer, where there is one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    fn is_gone(&self) -> bool {
        self.status() == Some(410)
    }

    /// When to try again, if the answer says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What becomes of a delivery after a failure, and of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consequence {
    /// When it is tried again; `None`: it has failed for good.
    pub pause: Option<Duration>,
    /// Why nothing is sent to the endpoint any more.
    pub disable: Option<DisabledReason>,
}

/// An attempt has failed, the `tries`-th since the delivery was begun or begun again; the endpoint has failed for
/// `failing` by now.
pub fn consequence(failure: &Failure, tries: i32, jitter: u32, failing: TimeDelta) -> Consequence {
    if failure.is_gone() {
        return Consequence { pause: None, disable: Some(DisabledReason::Gone) };
    }
    Consequence {
        pause: schedule::pause(tries, jitter, failure.retry_after()),
        disable: (failing >= DISABLE_AFTER).then_some(DisabledReason::Failing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Failure {
        Failure::Status { status, retry_after: None }
    }

    #[test]
    fn gone_is_for_good_and_the_rest_is_tried_again() {
        let gone = Consequence { pause: None, disable: Some(DisabledReason::Gone) };
        assert_eq!(consequence(&answer(410), 1, 200, TimeDelta::zero()), gone);
        for failure in [answer(500), answer(404), answer(301), Failure::Timeout, Failure::Address] {
            let again = Consequence { pause: Some(schedule::PAUSES[0]), disable: None };
            assert_eq!(consequence(&failure, 1, 200, TimeDelta::zero()), again, "{failure:?}");
            assert_eq!(consequence(&failure, 10, 200, TimeDelta::zero()).pause, None, "{failure:?}");
        }
    }

    #[test]
    fn an_endpoint_is_disabled_after_five_days_of_failures() {
        let after = |failing| consequence(&answer(503), 3, 200, failing).disable;
        assert_eq!(after(DISABLE_AFTER - TimeDelta::microseconds(1)), None);
        assert_eq!(after(DISABLE_AFTER), Some(DisabledReason::Failing));
    }
}
