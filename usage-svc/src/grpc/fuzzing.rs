//! What bytes from anybody reach before the database is asked, for `fuzz/` and the property tests. Both functions
//! panic where something that must hold does not.

use chrono::{DateTime, TimeDelta, Utc};
use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;
use nexus_core::{id::EcoId, route};
use nexus_kit::{auth::VerifiedKey, validate::Violations};
use nexus_proto::usage::v1::{BatchRecordUsageRequest, RecordUsageRequest, UsageEvent};
use prost::Message;

use super::{envoy, parse};
use crate::{
    app::rate_limit::Subject,
    domain::{
        event::Event,
        judge::{self, Account, Facts, Key, Placement, Refusal},
    },
};

/// The calling key, where there is one.
const KEY_ID: &str = "eco_api_0000000000000000000000";
const EARLIEST: &str = "0001-01-01T00:00:00Z";
const LATEST: &str = "9999-12-31T23:59:59.999999Z";

/// Bytes as a request of RecordUsage and of BatchRecordUsage: read, validated, and judged.
pub fn usage_event(bytes: &[u8]) {
    let eco_id = EcoId::parse("eco_a").expect("an account id");
    let key = VerifiedKey { key_id: KEY_ID.to_owned(), eco_id, scopes: Vec::new(), test_mode: true };
    for caller in [None, Some(&key)] {
        if let Ok(RecordUsageRequest { event: Some(sent) }) = RecordUsageRequest::decode(bytes) {
            check_single(sent, caller);
        }
        if let Ok(BatchRecordUsageRequest { events }) = BatchRecordUsageRequest::decode(bytes) {
            check_batch(events, caller);
        }
    }
}

fn check_single(sent: UsageEvent, caller: Option<&VerifiedKey>) {
    match parse::single(sent, caller) {
        Ok(event) => check_event(&event, caller),
        Err(status) => assert_eq!(status.code(), tonic::Code::InvalidArgument),
    }
}

fn check_batch(sent: Vec<UsageEvent>, caller: Option<&VerifiedKey>) {
    let count = sent.len();
    let Ok(batch) = parse::batch(sent, caller) else { return };
    assert_eq!((batch.ids.len(), batch.places.len()), (count, count), "each event has its answer");
    let mut places = batch.places.iter().flatten();
    for (position, event) in batch.events.iter().enumerate() {
        assert_eq!(places.next(), Some(&position));
        check_event(event, caller);
    }
    assert_eq!(places.next(), None);
    batch.places.iter().filter_map(|place| place.as_ref().err()).for_each(check_named);
}

fn check_named(violations: &Violations) {
    assert!(!violations.0.is_empty(), "what is refused has a reason");
    assert!(violations.0.iter().all(|v| !v.field.is_empty() && !v.message.is_empty()), "{violations}");
}

/// What the database's columns and their checks ask for.
fn check_event(event: &Event, caller: Option<&VerifiedKey>) {
    let payload = &event.payload;
    let time = payload.event_time;
    assert!(at(EARLIEST) <= time && time <= at(LATEST), "{time}");
    assert_eq!(time.timestamp_subsec_nanos() % 1_000, 0, "whole microseconds");
    assert!((1..=512).contains(&payload.endpoint.len()) && !payload.endpoint.contains(char::is_control));
    assert!(
        (1..=16).contains(&payload.method.len()) && payload.method.bytes().all(|c| c.is_ascii_uppercase())
    );
    assert!((100..=599).contains(&payload.status_code) && payload.response_time_ms >= 0);
    assert!((1..=parse::MAX_UNITS).contains(&payload.units_count));
    assert!(caller.is_none_or(|key| payload.api_key_id.as_deref() == Some(&key.key_id)));
    let route = route::template(&payload.endpoint);
    assert_eq!(route::template(&route), route, "a template is its own");
    check_judgement(event);
}

/// Judged at its own time, and as late and as early as may be.
fn check_judgement(event: &Event) {
    let time = event.payload.event_time;
    let off = |minutes| time + TimeDelta::minutes(minutes);
    let judged = |now, anchor, closed| {
        let mut facts = Facts { now, ..Facts::default() };
        facts.accounts.insert(
            event.eco_id.clone(),
            Account { anchor, closed, former: Vec::new(), closed_segments: Vec::new() },
        );
        if let Some(id) = &event.payload.api_key_id {
            let key = Key { eco_id: event.eco_id.as_str().to_owned(), test_mode: true };
            facts.keys.insert(id.clone(), key);
        }
        judge::judge(event, &facts)
    };
    for anchor in [at("2020-02-29T23:59:59Z"), at("2023-01-31T00:00:00Z"), time, off(5), off(-50_000)] {
        for now in [off(0), off(-5), off(34 * 24 * 60)] {
            let placed = judged(now, anchor, None).expect("nothing is against it");
            check_placement(&placed, event, now, anchor);
        }
        assert_eq!(judged(off(-6), anchor, None), Err(Refusal::InTheFuture));
        assert_eq!(judged(off(36 * 24 * 60), anchor, None), Err(Refusal::TooOld));
        assert_eq!(judged(off(1), anchor, Some(time)), Err(Refusal::ClosedAccount));
    }
}

fn check_placement(placed: &Placement, event: &Event, now: DateTime<Utc>, anchor: DateTime<Utc>) {
    let counted_at = if placed.late { now } else { event.payload.event_time.max(anchor) };
    assert!(placed.period_start <= counted_at, "{placed:?}");
    assert!(counted_at < placed.period_start + TimeDelta::days(31), "{placed:?}");
    assert_eq!(placed.test_mode, event.payload.api_key_id.is_some());
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

/// Bytes as a request of ShouldRateLimit: read and validated.
pub fn rate_limit(bytes: &[u8]) {
    let Ok(request) = RateLimitRequest::decode(bytes) else { return };
    let sent: Vec<_> = request.descriptors.iter().map(|d| d.entries.clone()).collect();
    match envoy::descriptors(request) {
        Err(violations) => check_named(&violations),
        Ok(descriptors) => {
            assert_eq!(descriptors.len(), sent.len());
            for (descriptor, entries) in descriptors.iter().zip(sent) {
                assert!(descriptor.units >= 1);
                let names = |name: &str| entries.iter().any(|entry| entry.key == name);
                let named = names("account") || names("api_key");
                assert_eq!(matches!(descriptor.subject, Subject::Nobody), !named, "{:?}", descriptor.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Good requests, so that bytes which differ a little from them get beyond the decoding.
    fn event() -> UsageEvent {
        UsageEvent {
            eco_id: "eco_a".to_owned(),
            event_id: "01930000-0000-7000-8000-000000000001".to_owned(),
            event_time: Some(prost_types::Timestamp { seconds: 1_709_164_800, nanos: 999_999_999 }),
            endpoint: "/v1/things/42?page=1".to_owned(),
            method: "get".to_owned(),
            status_code: 200,
            response_time_ms: 7,
            units_count: 3,
            api_key_id: KEY_ID.to_owned(),
            admission: "01930000-0000-7000-8000-000000000002".to_owned(),
        }
    }

    fn good() -> [Vec<u8>; 3] {
        use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
            RateLimitDescriptor, rate_limit_descriptor::Entry,
        };
        let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
        let entries =
            vec![entry("account", "eco_a"), entry("api_key", &format!("{KEY_ID}.{}", "a".repeat(22)))];
        let descriptor = RateLimitDescriptor { entries, ..RateLimitDescriptor::default() };
        [
            RecordUsageRequest { event: Some(event()) }.encode_to_vec(),
            BatchRecordUsageRequest { events: vec![event(), UsageEvent::default(), event()] }.encode_to_vec(),
            RateLimitRequest { domain: "d".to_owned(), descriptors: vec![descriptor], hits_addend: 2 }
                .encode_to_vec(),
        ]
    }

    fn changed() -> impl Strategy<Value = Vec<u8>> {
        let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        (prop::sample::select(good().to_vec()), changes, any::<prop::sample::Index>()).prop_map(
            |(mut bytes, changes, cut)| {
                for (place, byte) in changes {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
                // A quarter of them is cut short.
                bytes.truncate(cut.index(4 * bytes.len()));
                bytes
            },
        )
    }

    #[test]
    fn good_requests_are_taken() {
        let [single, batch, limit] = good();
        let request = RecordUsageRequest::decode(single.as_slice()).expect("it was encoded");
        assert!(parse::single(request.event.expect("it has one"), None).is_ok());
        let request = BatchRecordUsageRequest::decode(batch.as_slice()).expect("it was encoded");
        assert_eq!(parse::batch(request.events, None).map(|batch| batch.events.len()).ok(), Some(2));
        let request = RateLimitRequest::decode(limit.as_slice()).expect("it was encoded");
        let descriptors = envoy::descriptors(request).expect("it is good");
        assert!(matches!(descriptors[0].subject, Subject::Key { eco_id: Some(_), .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn no_bytes_break_what_must_hold(bytes in prop_oneof![vec(any::<u8>(), 0..300), changed()]) {
            usage_event(&bytes);
            rate_limit(&bytes);
        }
    }
}
