//! From the contract's requests to the domain's types, with every violation at once.

use chrono::{DateTime, Utc};
use nexus_core::id::{EcoId, is_api_key_id};
use nexus_kit::{
    auth::VerifiedKey,
    convert, status,
    validate::{Violation, Violations},
};
use nexus_proto::usage::v1::{CheckQuotaRequest, LeaseQuotaRequest, UsageEvent};
use tonic::Status;
use uuid::Uuid;

pub(super) use crate::app::rate_limit::MAX_UNITS;
use crate::{
    app::lease_quota::Wish,
    domain::event::{Event, Payload},
};

const MAX_BATCH: usize = 10_000;
/// Bytes of an id that an answer repeats.
const MAX_TOLD_ID: usize = 64;
const MAX_ENDPOINT_BYTES: usize = 512;
const MAX_METHOD_LETTERS: usize = 16;
const MAX_RESPONSE_TIME_MS: i32 = 86_400_000;

/// A batch, as far as it is valid.
pub(super) struct Batch {
    /// Ids as they were sent.
    pub(super) ids: Vec<String>,
    /// For each event as it was sent: its place in `events`, or what is wrong with it.
    pub(super) places: Vec<Result<usize, Violations>>,
    /// The valid events.
    pub(super) events: Vec<Event>,
}

/// Whether a batch has as many events as one may.
pub(super) fn batch_size(sent: &[UsageEvent]) -> Result<(), Violations> {
    if sent.is_empty() || sent.len() > MAX_BATCH {
        return Err(Violations::one("events", format!("must be 1 to {MAX_BATCH} events")));
    }
    Ok(())
}

pub(super) fn batch(sent: Vec<UsageEvent>, key: Option<&VerifiedKey>) -> Result<Batch, Violations> {
    batch_size(&sent)?;
    let mut batch = Batch {
        ids: Vec::with_capacity(sent.len()),
        places: Vec::with_capacity(sent.len()),
        events: Vec::with_capacity(sent.len()),
    };
    for mut pb in sent {
        let id = std::mem::take(&mut pb.event_id);
        let place = event(&id, pb, key).map(|event| {
            batch.events.push(event);
            batch.events.len() - 1
        });
        batch.ids.push(told_id(id));
        batch.places.push(place);
    }
    Ok(batch)
}

/// A field that was sent twice keeps the room of the longer text: nobody is to have us hold megabytes until the commit.
fn fit(text: &mut String) {
    if text.capacity() > MAX_ENDPOINT_BYTES {
        text.shrink_to_fit();
    }
}

/// An id as the answer repeats it. One that is no id is cut: nobody is to have us hold and send megabytes.
fn told_id(mut id: String) -> String {
    fit(&mut id);
    if id.len() > MAX_TOLD_ID {
        id.truncate(id.floor_char_boundary(MAX_TOLD_ID));
        id.push('…');
        id.shrink_to_fit();
    }
    id
}

/// The violations of the one event of a request.
fn within_event(violations: Violations) -> Status {
    let prefixed = violations.0.into_iter().map(|v| Violation { field: format!("event.{}", v.field), ..v });
    status::invalid(&Violations(prefixed.collect()))
}

/// The one event of a request.
pub(super) fn single(mut pb: UsageEvent, key: Option<&VerifiedKey>) -> Result<Event, Status> {
    let id = std::mem::take(&mut pb.event_id);
    event(&id, pb, key).map_err(within_event)
}

/// An event, its id aside. What an API key leaves out is its own: the account, and the key the call was made with.
fn event(id: &str, mut pb: UsageEvent, key: Option<&VerifiedKey>) -> Result<Event, Violations> {
    for text in [&mut pb.eco_id, &mut pb.endpoint, &mut pb.method, &mut pb.api_key_id] {
        fit(text);
    }
    let mut v = Violations::new();
    let eco_id = match key {
        Some(key) if pb.eco_id.is_empty() => Some(key.eco_id.clone()),
        _ => v.take("eco_id", EcoId::try_from(pb.eco_id)),
    };
    let event_id = v.take("event_id", id.parse::<Uuid>().map_err(|_| "must be a UUID"));
    let event_time = match &pb.event_time {
        Some(time) => v.take("event_time", convert::datetime(time)),
        None => event_id.and_then(|id| {
            v.take("event_time", uuid_time(id).ok_or("is required, as event_id is not a UUIDv7"))
        }),
    };
    check_endpoint(&mut v, &pb.endpoint);
    pb.method.make_ascii_uppercase();
    let letters = pb.method.bytes().all(|c| c.is_ascii_alphabetic());
    let method = letters && (1..=MAX_METHOD_LETTERS).contains(&pb.method.len());
    v.require(method, "method", format!("must be 1 to {MAX_METHOD_LETTERS} letters"));
    let status_code = i16::try_from(pb.status_code).ok().filter(|code| (100..=599).contains(code));
    let status_code = v.take("status_code", status_code.ok_or("must be 100 to 599"));
    let latency = (0..=MAX_RESPONSE_TIME_MS).contains(&pb.response_time_ms);
    v.require(latency, "response_time_ms", format!("must be 0 to {MAX_RESPONSE_TIME_MS}"));
    let units_count = units(&mut v, pb.units_count);
    let api_key_id = Some(pb.api_key_id).filter(|id| !id.is_empty());
    v.require(api_key_id.as_deref().is_none_or(is_api_key_id), "api_key_id", "must be the id of an API key");
    // Or a customer could book live calls on a key that is in test mode.
    let own = key.is_none_or(|key| api_key_id.as_deref().is_none_or(|id| id == key.key_id));
    v.require(own, "api_key_id", "must be the calling API key, or empty");
    let admission = Some(pb.admission.as_str()).filter(|text| !text.is_empty());
    let admission = admission.and_then(|text| {
        v.take(
            "admission",
            text.parse::<Uuid>()
                .map_err(|_| "must be an admission from CheckQuota or a lease from LeaseQuota"),
        )
    });
    match (eco_id, event_id, event_time, status_code, v.finish()) {
        (Some(eco_id), Some(event_id), Some(event_time), Some(status_code), Ok(())) => Ok(Event {
            event_id,
            eco_id,
            accepted: None,
            payload: Payload {
                event_time,
                endpoint: pb.endpoint,
                method: pb.method,
                status_code,
                response_time_ms: pb.response_time_ms,
                units_count,
                api_key_id: api_key_id.or_else(|| key.map(|key| key.key_id.clone())),
                admission,
            },
        }),
        (.., finished) => Err(finished.expect_err("a field that is missing was said to be")),
    }
}

fn check_endpoint(v: &mut Violations, endpoint: &str) {
    let length = (1..=MAX_ENDPOINT_BYTES).contains(&endpoint.len());
    v.require(length, "endpoint", format!("must be 1 to {MAX_ENDPOINT_BYTES} bytes"));
    v.require(!endpoint.chars().any(char::is_control), "endpoint", "must have no control characters");
    v.require(!endpoint.starts_with(['?', '#']), "endpoint", "must have a path before the query");
}

/// The time in a UUIDv7, in whole milliseconds.
fn uuid_time(id: Uuid) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = id.get_timestamp().filter(|_| id.get_version_num() == 7)?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

/// Units; 0 is the default, 1.
fn units(v: &mut Violations, count: i64) -> i64 {
    v.require((0..=MAX_UNITS).contains(&count), "units_count", format!("must be 1 to {MAX_UNITS}"));
    count.max(1)
}

/// A quota check.
pub(super) struct Check {
    pub(super) eco_id: EcoId,
    pub(super) units: i64,
    pub(super) request_id: Option<Uuid>,
}

pub(super) fn check(pb: CheckQuotaRequest, key: Option<&VerifiedKey>) -> Result<Check, Status> {
    let mut v = Violations::new();
    let eco_id = match key {
        Some(key) => Some(key.account(&pb.eco_id)?),
        None => v.eco_id("eco_id", &pb.eco_id),
    };
    let units = units(&mut v, pb.units_count);
    let request_id = v.optional_uuid("request_id", &pb.request_id);
    match (eco_id, v.finish()) {
        (Some(eco_id), Ok(())) => Ok(Check { eco_id, units, request_id }),
        (_, finished) => Err(status::invalid(&finished.expect_err("a field that is missing was said to be"))),
    }
}

/// Most units that a client may want at once.
const MAX_WANT: i64 = 1_000_000;

/// Who leases units: a client of an account, as it calls itself.
pub(super) type Lessee = (EcoId, Uuid);

/// A message of a client that leases units: who that is, and what it wishes. `open`: who it was in the first message.
pub(super) fn lease(
    pb: LeaseQuotaRequest,
    key: Option<&VerifiedKey>,
    open: Option<&Lessee>,
) -> Result<(Lessee, Wish), Status> {
    let (open, known) = open.map(|(eco_id, client)| (eco_id, *client)).unzip();
    let mut v = Violations::new();
    let eco_id = match (key, open) {
        (Some(key), _) => Some(key.account(&pb.eco_id)?),
        (None, Some(open)) if pb.eco_id.is_empty() || pb.eco_id == open.as_str() => Some(open.clone()),
        (None, Some(_)) => v.take("eco_id", Err("must be the account of the first message, or empty")),
        (None, None) => v.eco_id("eco_id", &pb.eco_id),
    };
    let client = match (known, v.optional_uuid("client_id", &pb.client_id)) {
        (Some(known), Some(client)) => {
            v.require(client == known, "client_id", "must be that of the first message, or empty");
            known
        }
        (Some(known), None) => known,
        (None, client) => {
            v.require(!pb.client_id.is_empty(), "client_id", "is required in the first message");
            client.unwrap_or_default()
        }
    };
    let settled = v.optional_uuid("lease_id", &pb.lease_id);
    v.require(pb.used_count >= 0, "used_count", "must not be negative");
    v.require(pb.used_count == 0 || !pb.lease_id.is_empty(), "lease_id", "is required with used_count");
    v.require((0..=MAX_WANT).contains(&pb.want_count), "want_count", format!("must be 0 to {MAX_WANT}"));
    v.require(!pb.release || pb.want_count <= 0, "want_count", "must be 0 where release is true");
    let wanted = v.optional_uuid("want_lease_id", &pb.want_lease_id);
    match (eco_id, v.finish()) {
        (Some(eco_id), Ok(())) => {
            let want = (pb.want_count > 0).then(|| (wanted.unwrap_or_else(Uuid::now_v7), pb.want_count));
            let settle = settled.map(|lease_id| (lease_id, pb.used_count));
            Ok(((eco_id, client), Wish { settle, want, release: pb.release }))
        }
        (_, finished) => Err(status::invalid(&finished.expect_err("a field that is missing was said to be"))),
    }
}

/// The years that times of RFC 3339 have between them.
const MAX_SHIFT_MS: i64 = 10_000 * 366 * 86_400_000;

pub(super) fn import(file_digest: &str, shift_ms: i64) -> Result<(), Violations> {
    let mut v = Violations::new();
    let digest =
        file_digest.len() == 64 && file_digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    v.require(digest, "file_digest", "must be 64 lower-case hexadecimal digits");
    let shift = (-MAX_SHIFT_MS..=MAX_SHIFT_MS).contains(&shift_ms);
    v.require(shift, "proposed_shift_ms", "must be within 10,000 years");
    v.finish()
}

#[cfg(test)]
mod tests {
    use nexus_kit::serve::{MAX_BATCH_BYTES, MAX_REQUEST_BYTES};
    use nexus_proto::usage::v1::BatchRecordUsageRequest;
    use prost::Message;

    use super::*;

    /// Each field as long as it may be.
    fn longest() -> UsageEvent {
        UsageEvent {
            event_id: Uuid::max().urn().to_string(),
            eco_id: format!("eco_{}", "x".repeat(60)),
            event_time: Some(convert::timestamp(DateTime::<Utc>::MAX_UTC)),
            endpoint: "/".repeat(MAX_ENDPOINT_BYTES),
            method: "X".repeat(MAX_METHOD_LETTERS),
            status_code: 599,
            response_time_ms: MAX_RESPONSE_TIME_MS,
            units_count: i64::MAX,
            api_key_id: format!("eco_api_{}", "x".repeat(22)),
            admission: Uuid::max().urn().to_string(),
        }
    }

    #[test]
    fn a_batch_of_the_longest_events_may_be_sent() {
        let events = vec![longest(); MAX_BATCH];
        assert!(BatchRecordUsageRequest { events }.encoded_len() + MAX_REQUEST_BYTES < MAX_BATCH_BYTES);
    }

    #[test]
    fn a_text_that_was_sent_twice_holds_no_more_than_the_last_one() {
        let long = || "x".repeat(1_000_000);
        let mut bytes = UsageEvent {
            event_id: long(),
            eco_id: long(),
            endpoint: long(),
            method: long(),
            api_key_id: long(),
            ..UsageEvent::default()
        }
        .encode_to_vec();
        let last = UsageEvent {
            event_time: None,
            event_id: Uuid::now_v7().to_string(),
            units_count: 1,
            ..longest()
        };
        bytes.extend(UsageEvent { admission: String::new(), ..last }.encode_to_vec());
        let twice = UsageEvent::decode(&*bytes).expect("an event");
        assert!(twice.endpoint.capacity() >= 1_000_000);
        let batch = batch(vec![twice], None).expect("a batch");
        assert_eq!(batch.places, [Ok(0)]);
        let Payload { endpoint, method, api_key_id, .. } = &batch.events[0].payload;
        let key_id = api_key_id.as_ref().expect("one");
        for text in [endpoint, method, key_id, &batch.ids[0]] {
            assert!(text.capacity() <= MAX_ENDPOINT_BYTES, "{text}: {}", text.capacity());
        }
    }
}
