//! Frames: an event as bytes that stand for themselves. Each names the journal it is of, its number in it and a
//! checksum over both and the content, so that it is found and known to be whole wherever in a damaged file it
//! lies. A journal's id is random and no caller learns it: none can put a frame into an event.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use prost::Message;
use uuid::Uuid;

use crate::domain::event::{Event, Payload};

const MAGIC: [u8; 4] = [0xF1, b'e', b'v', 0x9C];
/// Magic, checksum, length of the content, journal, number.
const HEADER_BYTES: usize = 4 + 4 + 4 + 16 + 8;

/// A frame found among bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) number: u64,
    pub(super) content: &'a [u8],
}

/// Appends an event's frame.
pub(super) fn put(out: &mut Vec<u8>, journal: Uuid, number: u64, event: &Event) {
    let content = Content::of(event).encode_to_vec();
    let length = u32::try_from(content.len()).expect("an event is far shorter than 4 GiB");
    let mut summed = Vec::with_capacity(HEADER_BYTES - 8 + content.len());
    summed.extend_from_slice(&length.to_le_bytes());
    summed.extend_from_slice(journal.as_bytes());
    summed.extend_from_slice(&number.to_le_bytes());
    summed.extend_from_slice(&content);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&crc32fast::hash(&summed).to_le_bytes());
    out.extend_from_slice(&summed);
}

/// The frame that these bytes begin with, and its length; `None`: they begin with none that is whole.
pub(super) fn first(bytes: &[u8], journal: Uuid) -> Option<(Frame<'_>, usize)> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (length, after_length) = rest.split_first_chunk::<4>()?;
    let (id, after_id) = after_length.split_first_chunk::<16>()?;
    let (number, after_number) = after_id.split_first_chunk::<8>()?;
    let content = after_number.get(..u32::from_le_bytes(*length) as usize)?;
    let total = HEADER_BYTES + content.len();
    let summed = &bytes[8..total];
    if id != journal.as_bytes() || crc32fast::hash(summed).to_le_bytes() != *sum {
        return None;
    }
    Some((Frame { number: u64::from_le_bytes(*number), content }, total))
}

/// Every whole frame of the journal among these bytes, whatever lies between.
pub(super) fn all(bytes: &[u8], journal: Uuid) -> impl Iterator<Item = Frame<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(skipped) = bytes.get(at..)?.iter().position(|byte| *byte == MAGIC[0]) {
            at += skipped;
            match first(&bytes[at..], journal) {
                Some((frame, length)) => {
                    at += length;
                    return Some(frame);
                }
                None => at += 1,
            }
        }
        None
    })
}

/// The content of a frame.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(bytes = "vec", tag = "1")]
    event_id: Vec<u8>,
    #[prost(string, tag = "2")]
    eco_id: String,
    /// Microseconds since 1970.
    #[prost(int64, tag = "3")]
    event_time: i64,
    #[prost(string, tag = "4")]
    endpoint: String,
    #[prost(string, tag = "5")]
    method: String,
    #[prost(int32, tag = "6")]
    status_code: i32,
    #[prost(int32, tag = "7")]
    response_time_ms: i32,
    #[prost(int64, tag = "8")]
    units_count: i64,
    #[prost(string, optional, tag = "9")]
    api_key_id: Option<String>,
    #[prost(bytes = "vec", optional, tag = "10")]
    admission: Option<Vec<u8>>,
    /// Microseconds since 1970.
    #[prost(int64, optional, tag = "11")]
    accepted: Option<i64>,
}

impl Content {
    fn of(event: &Event) -> Self {
        let payload = &event.payload;
        Self {
            event_id: event.event_id.as_bytes().to_vec(),
            eco_id: event.eco_id.as_str().to_owned(),
            event_time: payload.event_time.timestamp_micros(),
            endpoint: payload.endpoint.clone(),
            method: payload.method.clone(),
            status_code: payload.status_code.into(),
            response_time_ms: payload.response_time_ms,
            units_count: payload.units_count,
            api_key_id: payload.api_key_id.clone(),
            admission: payload.admission.map(|id| id.as_bytes().to_vec()),
            accepted: event.accepted.map(|at| at.timestamp_micros()),
        }
    }
}

/// The event in a frame's content; `None`: another version wrote it.
pub(super) fn event(content: &[u8]) -> Option<Event> {
    let content = Content::decode(content).ok()?;
    let time = |micros| DateTime::<Utc>::from_timestamp_micros(micros);
    let admission = match content.admission {
        Some(id) => Some(Uuid::from_slice(&id).ok()?),
        None => None,
    };
    let accepted = match content.accepted {
        Some(micros) => Some(time(micros)?),
        None => None,
    };
    Some(Event {
        event_id: Uuid::from_slice(&content.event_id).ok()?,
        eco_id: EcoId::try_from(content.eco_id).ok()?,
        accepted,
        payload: Payload {
            event_time: time(content.event_time)?,
            endpoint: content.endpoint,
            method: content.method,
            status_code: i16::try_from(content.status_code).ok()?,
            response_time_ms: content.response_time_ms,
            units_count: content.units_count,
            api_key_id: content.api_key_id,
            admission,
        },
    })
}
