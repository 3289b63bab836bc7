//! An event of Stripe's: what is kept of it, what it is about, and when one that failed is tried again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::Rng;
use serde_json::Value;

use super::account::check_stripe_id;

/// Failures after which an event is parked, where trying again does not help by itself: some eight hours.
pub const MAX_ATTEMPTS: i32 = 20;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(3_600);

/// An event as it came, to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Stripe's id.
    pub event_id: String,
    /// Its type, in Stripe's words.
    pub kind: String,
    /// Stripe's id of what it is about.
    pub object_id: Option<String>,
    /// Stripe's id of the subscription that this belongs to, as far as the event says so.
    pub subscription_id: Option<String>,
    /// When Stripe made it.
    pub created: Option<DateTime<Utc>>,
    /// The whole of it.
    pub payload: Value,
}

/// What an event tells us to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A checkout that a customer has been through.
    Checkout,
    /// A subscription.
    Subscription,
    /// An invoice that was drafted.
    Draft,
    /// An invoice that was paid, or not.
    Payment,
}

impl Topic {
    /// Of an event's type; `None`: it is kept, and nothing is done about it.
    pub fn of(kind: &str) -> Option<Self> {
        match kind {
            "checkout.session.completed" => Some(Self::Checkout),
            "customer.subscription.created"
            | "customer.subscription.updated"
            | "customer.subscription.deleted" => Some(Self::Subscription),
            "invoice.created" => Some(Self::Draft),
            "invoice.payment_failed" | "invoice.payment_succeeded" => Some(Self::Payment),
            _ => None,
        }
    }
}

impl NewEvent {
    /// Reads a body. Its ids become parts of URLs, so that only what can be an id is taken for one.
    pub fn read(body: &[u8]) -> Result<Self, &'static str> {
        const FORM: &str = "must be an event of Stripe's: a JSON object with id, type and data.object";
        let payload: Value = serde_json::from_slice(body).map_err(|_| FORM)?;
        let id = |value: &Value| value.as_str().and_then(|id| check_stripe_id(id).ok());
        let object = payload.pointer("/data/object").filter(|object| object.is_object()).ok_or(FORM)?;
        let event_id = id(&payload["id"]).ok_or(FORM)?;
        let kind = payload["type"].as_str().filter(|kind| (1..=255).contains(&kind.len())).ok_or(FORM)?;
        let object_id = id(&object["id"]);
        if Topic::of(kind).is_some() && object_id.is_none() {
            return Err(FORM);
        }
        let subscription_id = match Topic::of(kind) {
            Some(Topic::Subscription) => object_id.clone(),
            // The first is where API versions before 2025-03-31 have it.
            Some(_) => id(&object["subscription"])
                .or_else(|| id(object.pointer("/parent/subscription_details/subscription")?)),
            None => None,
        };
        Ok(Self {
            event_id,
            kind: kind.to_owned(),
            object_id,
            subscription_id,
            created: payload["created"].as_i64().and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
            payload,
        })
    }
}

/// What applying an event came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// What it is about is in our tables as it is at Stripe.
    Applied,
    /// It is about no account of ours.
    NotOurs,
    /// What it is about is not at Stripe any more.
    Gone,
    /// Nothing is done about events of its type.
    NotHandled,
}

impl Outcome {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotOurs => "not_ours",
            Self::Gone => "gone",
            Self::NotHandled => "not_handled",
        }
    }
}

/// How long to wait after so many failures: twice as long each time, between half and all of that.
pub fn backoff(failures: i32, rng: &mut impl Rng) -> Duration {
    let doublings = u32::try_from(failures.clamp(1, 20) - 1).unwrap_or_default();
    let full = FIRST_BACKOFF.saturating_mul(1 << doublings).min(LONGEST_BACKOFF);
    full / 2 + (full / 2).mul_f64(rng.random())
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use serde_json::json;

    use super::*;

    fn read(event: &Value) -> Result<NewEvent, &'static str> {
        NewEvent::read(event.to_string().as_bytes())
    }

    #[test]
    fn the_subscription_is_where_each_kind_of_event_has_it() {
        let event = |kind: &str, object: Value| json!({"id": "evt_1", "type": kind, "created": 7, "data": {"object": object}});
        for (kind, object, object_id, subscription) in [
            ("customer.subscription.updated", json!({"id": "sub_1"}), Some("sub_1"), Some("sub_1")),
            (
                "checkout.session.completed",
                json!({"id": "cs_1", "subscription": "sub_1"}),
                Some("cs_1"),
                Some("sub_1"),
            ),
            ("checkout.session.completed", json!({"id": "cs_1", "subscription": null}), Some("cs_1"), None),
            (
                "invoice.payment_failed",
                json!({"id": "in_1", "subscription": "sub_1"}),
                Some("in_1"),
                Some("sub_1"),
            ),
            (
                "invoice.created",
                json!({"id": "in_1", "parent": {"subscription_details": {"subscription": "sub_1"}}}),
                Some("in_1"),
                Some("sub_1"),
            ),
            ("invoice.created", json!({"id": "in_1", "parent": null}), Some("in_1"), None),
            ("balance.available", json!({"object": "balance"}), None, None),
        ] {
            let read = read(&event(kind, object)).expect("an event");
            assert_eq!(
                (read.object_id.as_deref(), read.subscription_id.as_deref()),
                (object_id, subscription),
                "{kind}"
            );
            assert_eq!((read.event_id.as_str(), read.kind.as_str()), ("evt_1", kind));
            assert_eq!(read.created, DateTime::from_timestamp(7, 0));
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for bad in [
            json!([]),
            json!({"id": "evt_1", "type": "x"}),
            json!({"id": "evt_1", "type": "x", "data": {}}),
            json!({"id": "evt_1", "type": "x", "data": {"object": "sub_1"}}),
            json!({"id": "evt_1", "data": {"object": {}}}),
            json!({"id": "evt_1", "type": "", "data": {"object": {}}}),
            json!({"id": "../v1", "type": "x", "data": {"object": {}}}),
            json!({"type": "x", "data": {"object": {}}}),
            json!({"id": "evt_1", "type": "customer.subscription.created", "data": {"object": {}}}),
            json!({"id": "evt_1", "type": "customer.subscription.created", "data": {"object": {"id": "a/b"}}}),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
        assert!(NewEvent::read(b"{").is_err());
    }

    #[test]
    fn waits_grow_up_to_an_hour() {
        let mut rng = StdRng::seed_from_u64(1);
        for (failures, full) in [(1, 1), (2, 2), (5, 16), (12, 2_048), (13, 3_600), (i32::MAX, 3_600)] {
            let wait = backoff(failures, &mut rng);
            let full = Duration::from_secs(full);
            assert!(wait >= full / 2 && wait <= full, "{failures}: {wait:?}");
        }
    }
}
