//! How much an account may do within a day where each leaves a row, or an object at Stripe.

use std::time::Duration;

/// Checkouts that are opened, at most.
pub const MAX_CHECKOUTS: i64 = 100;
/// Changes of plan, at most: those at Stripe and those here each.
pub const MAX_CHANGES: i64 = 100;
/// Requests about the plan that are kept for repeats, at most: those that lead to Stripe and those that do not each.
pub const MAX_REQUESTS: i64 = 1_000;

/// What an account has of the last 24 hours, by the database's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfADay {
    /// How many.
    pub count: i64,
    /// When the oldest is not of them any more.
    pub oldest_leaves_in_ms: i64,
}

impl OfADay {
    /// When there is room again, if these are more than there may be.
    pub fn beyond(&self, most: i64) -> Option<Duration> {
        let wait = Duration::from_millis(u64::try_from(self.oldest_leaves_in_ms).unwrap_or(0));
        (self.count > most).then(|| wait.max(Duration::from_secs(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_again_when_the_oldest_leaves() {
        let of = |count, oldest_leaves_in_ms| OfADay { count, oldest_leaves_in_ms };
        assert_eq!(of(100, 5_000).beyond(100), None);
        assert_eq!(of(101, 5_000).beyond(100), Some(Duration::from_secs(5)));
        // A hair before it leaves, or after.
        for wait in [1, -1] {
            assert_eq!(of(101, wait).beyond(100), Some(Duration::from_secs(1)));
        }
    }
}
