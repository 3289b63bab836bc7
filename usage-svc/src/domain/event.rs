//! An event as a caller sent it, and what became of it.

use chrono::{DateTime, NaiveDate, Utc};
use nexus_core::id::EcoId;
use uuid::Uuid;

use super::judge::Refusal;

/// One metered call, every field in its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Chosen by the client, once for all its retries.
    pub event_id: Uuid,
    /// Account that is charged.
    pub eco_id: EcoId,
    /// When it was taken without the database: the age that counts is the one it had then.
    pub accepted: Option<DateTime<Utc>>,
    /// The rest: two events of one identity must agree on it.
    pub payload: Payload,
}

/// What is told of a call. Units and fields as in the raw log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// When it happened, in whole microseconds.
    pub event_time: DateTime<Utc>,
    /// Path or template, as it was given.
    pub endpoint: String,
    /// In capitals.
    pub method: String,
    /// 100 to 599.
    pub status_code: i16,
    /// Milliseconds.
    pub response_time_ms: i32,
    /// At least 1.
    pub units_count: i64,
    /// Key the call was made with.
    pub api_key_id: Option<String>,
    /// Lease it claims to be admitted under.
    pub admission: Option<Uuid>,
}

/// What makes an event the same: id, account and UTC day, in the order of the raw log's key.
pub type Identity = (Uuid, EcoId, NaiveDate);

impl Event {
    /// UTC day of its time.
    pub fn day(&self) -> NaiveDate {
        self.payload.event_time.date_naive()
    }

    /// Its identity.
    pub fn identity(&self) -> Identity {
        (self.event_id, self.eco_id.clone(), self.day())
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Committed and counted by this call.
    Accepted,
    /// The same event had been counted before.
    Duplicate,
    /// Its identity had been used for another payload.
    Conflict,
    /// Not counted.
    Refused(Refusal),
}
