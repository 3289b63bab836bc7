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

/// How long it is not asked again, if nobody finds it there. The holder's sign of life asks more often than that.
const AWAY_FOR: Duration = Duration::from_secs(15);

/// While it answers more often than this, it is there, though it takes no new connection. The holder's sign of life is
/// such an answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What is known of an outage.
#[derive(Debug)]
pub struct Outage {
    feed: Arc<Feed>,
    /// Until when it is taken to be away, in nanoseconds of [`BootTime`].
    until: AtomicU64,
    /// When it answered last, in the same.
    answered: AtomicU64,
}

impl Outage {
    /// None yet.
    pub fn new(feed: Arc<Feed>) -> Self {
        Self { feed, until: AtomicU64::new(0), answered: AtomicU64::new(0) }
    }

    /// The feed, whose silence is part of it.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        if self.feed.is_heard() {
            return false;
        }
        let now = BootTime::now();
        let answered = BootTime::at_nanos(self.answered.load(Ordering::Relaxed));
        let is_silent = now.since(answered) > ANSWERS_WITHIN;
        now.nanos() < self.until.load(Ordering::Relaxed) || (self.feed.is_refused() && is_silent)
    }

    /// Notes whether the database was away when it was asked.
    pub fn note(&self, away: bool) {
        let now = BootTime::now();
        if !away {
            self.answered.store(now.nanos(), Ordering::Relaxed);
        }
        self.until.store(if away { now.after(AWAY_FOR).nanos() } else { 0 }, Ordering::Relaxed);
    }
}
