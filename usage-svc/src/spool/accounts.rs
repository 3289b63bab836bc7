//! The part of the spool that one account may fill by its API keys, so that a single customer cannot keep all others
//! out for the rest of an outage. Services of our own have no such bound: they record for everybody.

use std::collections::HashMap;

use nexus_core::id::EcoId;

use crate::domain::event::Event;

/// An account has this part of all.
const PART: u64 = 4;
/// An event takes less than this beside its texts.
const EVENT_BYTES: u64 = 256;

/// Events that are kept all or none.
#[derive(Debug)]
pub struct Call<'a> {
    /// The events.
    pub events: Vec<&'a Event>,
    /// An API key sends them, of the account that they all are of.
    pub by_key: bool,
}

impl Call<'_> {
    /// The account whose part they are to be in.
    fn account(&self) -> Option<&EcoId> {
        self.events.first().filter(|_| self.by_key).map(|event| &event.eco_id)
    }
}

/// Bytes of the events that keys sent, by their accounts: at most an entry for each event that is in the spool, and it
/// takes less than that.
#[derive(Debug, Default)]
pub(super) struct Accounts(HashMap<EcoId, u64>);

impl Accounts {
    /// Which of the calls are kept in a spool of so many bytes: those that leave their account within its part.
    pub(super) fn admit(&self, calls: &[Call<'_>], max_bytes: u64) -> Vec<bool> {
        let mut added = HashMap::<&EcoId, u64>::new();
        let fits = calls.iter().map(|call| {
            let Some(account) = call.account() else { return true };
            let added = added.entry(account).or_default();
            let bytes = *added + call.events.iter().map(|event| event_bytes(event)).sum::<u64>();
            let had = self.0.get(account).copied().unwrap_or_default();
            let fits = had + bytes <= max_bytes / PART;
            if fits {
                *added = bytes;
            }
            fits
        });
        fits.collect()
    }

    /// Adds an event that a key sent.
    pub(super) fn add(&mut self, event: &Event) {
        let bytes = event_bytes(event);
        match self.0.get_mut(&event.eco_id) {
            Some(sum) => *sum += bytes,
            None => {
                self.0.insert(event.eco_id.clone(), bytes);
            }
        }
    }

    /// Takes off what others have of it.
    pub(super) fn subtract(&mut self, others: &Self) {
        for (eco_id, bytes) in &others.0 {
            if let Some(sum) = self.0.get_mut(eco_id) {
                *sum = sum.saturating_sub(*bytes);
                if *sum == 0 {
                    self.0.remove(eco_id);
                }
            }
        }
    }
}

/// What an event takes at most, and its part of the pages.
pub(super) fn event_bytes(event: &Event) -> u64 {
    EVENT_BYTES + event.payload.endpoint.len() as u64
}
