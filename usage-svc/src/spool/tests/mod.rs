//! What a journal and a folder of them keep: through crashes at every write, full disks, and files that rot or go.

mod accounts;
mod folder;
mod frames;
mod journals;
mod lost;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use chrono::DateTime;
use nexus_core::id::EcoId;
use uuid::Uuid;

use super::{Call, Spool, SpoolError};
use crate::domain::event::{Event, Payload};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const ROOM: u64 = 1 << 30;

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

/// Adds events that a service sends.
fn append(spool: &Spool, events: &[Event]) -> Result<(), SpoolError> {
    let kept = spool.append(&[Call { events: events.iter().collect(), by_key: false }])?;
    assert_eq!(kept, [true]);
    Ok(())
}

/// Drains all there is, in order.
fn drain(spool: &Spool) -> Result<Vec<Event>, SpoolError> {
    let mut all = Vec::new();
    while let Some(oldest) = spool.oldest()? {
        all.extend(oldest.events.into_values());
        spool.discard(oldest.id)?;
    }
    Ok(all)
}

fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let all = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.extension().is_some_and(|e| e == extension)).collect())
}
