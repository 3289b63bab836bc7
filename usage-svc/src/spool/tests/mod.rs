//! What a journal and a folder of them keep: through crashes at every write, full disks, and files that rot.

mod folder;
mod frames;
mod journals;

use chrono::DateTime;
use nexus_core::id::EcoId;
use uuid::Uuid;

use crate::domain::event::{Event, Payload};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An event that tells its number, with a text as long as that.
fn event(n: u64, endpoint: usize) -> Event {
    let time = DateTime::from_timestamp_micros(1_800_000_000_000_000 + n as i64).expect("a time");
    Event {
        event_id: Uuid::from_u128(u128::from(n)),
        eco_id: EcoId::parse(&format!("eco_{}", n % 7)).expect("an id"),
        accepted: Some(time),
        payload: Payload {
            event_time: time,
            endpoint: format!("/{n}/").repeat(endpoint / 3 + 1),
            method: "GET".to_owned(),
            status_code: 200,
            response_time_ms: 5,
            units_count: 1 + n as i64,
            api_key_id: None,
            admission: n.is_multiple_of(3).then(|| Uuid::from_u128(u128::from(n) << 64)),
        },
    }
}

fn events(numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(|n| event(n, 20)).collect()
}
