//! The calls a client records: everything about them comes from the seed, but for the time of day.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use nexus_kit::convert::timestamp;
use nexus_proto::usage::v1::UsageEvent;
use rand::{Rng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

/// Accounts there are.
pub(crate) const ACCOUNTS: [&str; 4] = ["eco_f_a", "eco_f_b", "eco_f_c", "eco_f_d"];
/// An account there is not.
const NOBODY: &str = "eco_f_nobody";

const ENDPOINTS: [&str; 4] = ["/v1/reports", "/v1/users/42", "/v1/users/43?expand=all", "/pkg.Service/Call"];
const METHODS: [&str; 3] = ["GET", "post", "GRPC"];
const STATUSES: [i32; 6] = [101, 200, 204, 301, 404, 500];

/// A call, as it is sent each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: Uuid,
    pub(crate) eco_id: String,
    pub(crate) time: DateTime<Utc>,
    /// Whether the event carries the time, or leaves it to be read from its id.
    stamped: bool,
    endpoint: String,
    method: String,
    status_code: i32,
    response_time_ms: i32,
    units_count: i64,
    pub(crate) admission: String,
    /// Whether it is to be taken; else it is to be refused, each time.
    pub(crate) valid: bool,
}

impl Call {
    /// A random call that ends now, or did so days ago.
    pub(crate) fn random(rng: &mut StdRng) -> Self {
        let now = Utc::now();
        let time = if rng.random_bool(0.4) {
            now - TimeDelta::seconds(rng.random_range(0..34 * 86_400))
        } else {
            now
        };
        let call = Self {
            id: Builder::from_random_bytes(rng.random()).into_uuid(),
            eco_id: ACCOUNTS[rng.random_range(0..ACCOUNTS.len())].to_owned(),
            // As the database keeps times.
            time: time.trunc_subsecs(6),
            stamped: true,
            endpoint: ENDPOINTS[rng.random_range(0..ENDPOINTS.len())].to_owned(),
            method: METHODS[rng.random_range(0..METHODS.len())].to_owned(),
            status_code: STATUSES[rng.random_range(0..STATUSES.len())],
            response_time_ms: rng.random_range(0..5_000),
            units_count: rng.random_range(0..4),
            admission: String::new(),
            valid: true,
        };
        match rng.random_range(0..100) {
            0 => Self { eco_id: NOBODY.to_owned(), valid: false, ..call },
            1 => Self { time: call.time - TimeDelta::days(36), valid: false, ..call },
            2..30 => call,
            _ => call.with_time_in_id(rng),
        }
    }

    /// A UUIDv7; the time may then be left out.
    fn with_time_in_id(self, rng: &mut StdRng) -> Self {
        let time = self.time.trunc_subsecs(3);
        let id = Builder::from_unix_timestamp_millis(time.timestamp_millis().cast_unsigned(), &rng.random());
        Self { id: id.into_uuid(), time, stamped: rng.random_bool(0.7), ..self }
    }

    /// Units it counts; 0 stands for 1.
    pub(crate) fn units(&self) -> i64 {
        self.units_count.max(1)
    }

    /// The event that records it.
    pub(crate) fn event(&self) -> UsageEvent {
        UsageEvent {
            eco_id: self.eco_id.clone(),
            event_id: self.id.to_string(),
            event_time: self.stamped.then(|| timestamp(self.time)),
            endpoint: self.endpoint.clone(),
            method: self.method.clone(),
            status_code: self.status_code,
            response_time_ms: self.response_time_ms,
            units_count: self.units_count,
            api_key_id: String::new(),
            admission: self.admission.clone(),
        }
    }

    /// Another call under the same identity, which must not be counted.
    pub(crate) fn tampered(&self) -> Self {
        Self { response_time_ms: self.response_time_ms + 1, ..self.clone() }
    }
}

/// The random numbers of one lane of a client, the same in each run of the seed; another series for each
/// process that takes the client's place.
pub(crate) fn series(seed: u64, client: u32, incarnation: u32, lane: u32) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    for (place, number) in [client + 1, incarnation, lane].into_iter().enumerate() {
        bytes[8 + 4 * place..12 + 4 * place].copy_from_slice(&number.to_le_bytes());
    }
    rand::SeedableRng::from_seed(bytes)
}
