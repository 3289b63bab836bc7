//! Whether the database is away. After a failure, with the feed unheard as well, nobody waits for it: each would
//! wait in vain for as long as a connection may take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::feed::Feed;
use crate::clock::BootTime;

/// How long it is not asked again.
const AWAY_FOR: Duration = Duration::from_secs(5);

/// What is known of an outage.
#[derive(Debug)]
pub struct Outage {
    feed: Arc<Feed>,
    /// Until when it is taken to be away, in nanoseconds of [`BootTime`].
    until: AtomicU64,
}

impl Outage {
    /// None yet.
    pub fn new(feed: Arc<Feed>) -> Self {
        Self { feed, until: AtomicU64::new(0) }
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        BootTime::now().nanos() < self.until.load(Ordering::Relaxed) && !self.feed.is_heard()
    }

    /// Notes whether the database was away when it was asked.
    pub fn note(&self, away: bool) {
        let until = if away { BootTime::now().after(AWAY_FOR).nanos() } else { 0 };
        self.until.store(until, Ordering::Relaxed);
    }
}
