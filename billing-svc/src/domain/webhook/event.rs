//! What customers are told: the types of events, and the payload of each. A payload is
//! `{"type", "timestamp", "data"}`; `timestamp` is when it happened, and `data` depends on the type alone.

use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Endpoint, UnknownWord};
use crate::domain::{
    overage::Facts,
    threshold::{self, Reached},
};

/// Type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// An account's usage has reached a percentage of its limit.
    UsageThresholdReached,
    /// Somebody wants to see whether an endpoint works.
    WebhookTest,
}

impl EventType {
    /// All of them.
    pub const ALL: [EventType; 2] = [Self::UsageThresholdReached, Self::WebhookTest];

    /// The word in payloads and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UsageThresholdReached => "usage.threshold_reached",
            Self::WebhookTest => "webhook.test",
        }
    }
}

impl FromStr for EventType {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|t| t.as_str() == text).ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// Something that an account's endpoints are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Id; a receiver tells repeats by it.
    pub message_id: Uuid,
    /// Account.
    pub eco_id: String,
    /// Type.
    pub event_type: EventType,
    /// The very bytes that are signed and sent.
    pub payload: String,
}

impl Message {
    /// A threshold was reached.
    pub fn threshold_reached(facts: &Facts, reached: Reached) -> Self {
        let data = json!({
            "eco_id": facts.eco_id,
            "plan": reached.plan.as_str(),
            "threshold": reached.percent,
            "limit": reached.limit,
            "api_calls": facts.api_calls(),
            "period": { "start": rfc3339(facts.period.start), "end": rfc3339(facts.period.end) },
        });
        Self {
            message_id: threshold::message_id(facts, reached),
            eco_id: facts.eco_id.clone(),
            event_type: EventType::UsageThresholdReached,
            payload: payload(EventType::UsageThresholdReached, facts.now, data),
        }
    }

    /// A test of an endpoint.
    pub fn test(message_id: Uuid, endpoint: &Endpoint, now: DateTime<Utc>) -> Self {
        let data = json!({ "eco_id": endpoint.eco_id, "endpoint_id": endpoint.endpoint_id });
        Self {
            message_id,
            eco_id: endpoint.eco_id.clone(),
            event_type: EventType::WebhookTest,
            payload: payload(EventType::WebhookTest, now, data),
        }
    }
}

/// A message's id as receivers see it, in `webhook-id`.
pub fn webhook_id(message_id: Uuid) -> String {
    format!("msg_{}", message_id.simple())
}

/// The message that has this id.
pub fn message_id(webhook_id: &str) -> Option<Uuid> {
    let id = webhook_id.strip_prefix("msg_")?;
    Uuid::try_parse(id).ok().filter(|_| id.len() == 32)
}

fn payload(event_type: EventType, at: DateTime<Utc>, data: Value) -> String {
    json!({ "type": event_type.as_str(), "timestamp": rfc3339(at), "data": data }).to_string()
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}
