//! What becomes of events while the database is away.

use std::sync::Arc;

use super::{
    flush::FlushError,
    outage::Outage,
    record_usage::{Submission, answer},
    spooling::Spooling,
};

/// Where they go. Clones are the same.
#[derive(Clone, Debug)]
pub enum Away {
    /// To the spool, from when the database is found away until the drain reaches it.
    Spooled(Spooling),
    /// Back to their senders; at once while nobody needs to look whether it is back.
    Refused(Arc<Outage>),
}

impl Away {
    /// Whether the database is known to be away, so that nobody needs to wait for it.
    pub(super) fn is_on(&self) -> bool {
        match self {
            Self::Spooled(spooling) => spooling.is_away(),
            Self::Refused(outage) => outage.is_on(),
        }
    }

    /// Notes whether the database was away when it was asked.
    pub(super) fn note(&self, away: bool) {
        match self {
            Self::Spooled(spooling) if away => spooling.note_away(),
            // That it is back, the drain finds out.
            Self::Spooled(_) => {}
            Self::Refused(outage) => outage.note(away),
        }
    }

    /// Answers calls that the database could not take. Whether the spool has events that were counted all the same, as
    /// where the answer to their commit was lost, the drain finds out.
    pub(super) async fn take(&self, group: Vec<Submission>) {
        match self {
            Self::Spooled(spooling) => spooling.keep(group).await,
            Self::Refused(_) => answer(group, Err(FlushError::Unavailable)),
        }
    }
}
