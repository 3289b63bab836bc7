//! How large a lease should be.

use std::time::Duration;

/// How long a lease should last at the pace of the last one, where units are limited.
const LIMITED_FOR: Duration = Duration::from_millis(500);
/// The same where nobody is refused: what a holder has idle keeps nobody from anything. Not for longer, though: units of
/// a holder that is killed stay consumed, also for a plan with a limit that the account may come to in this period.
const UNLIMITED_FOR: Duration = Duration::from_secs(2);
/// Units that are then leased at least.
const UNLIMITED_LEAST: i64 = 100;
/// A lease has at most so many units more than are waited for.
const MOST: i64 = 1_000_000_000;
/// A pace is not taken over less time.
const PACE_OVER: Duration = Duration::from_millis(50);

/// Units to want after `spent` units in `elapsed`.
pub fn wanted(spent: i64, elapsed: Duration, limited: bool) -> i64 {
    let (lasts, least) = if limited { (LIMITED_FOR, 0) } else { (UNLIMITED_FOR, UNLIMITED_LEAST) };
    let units = i128::from(spent.max(0)) * milliseconds(lasts) / milliseconds(elapsed.max(PACE_OVER));
    i64::try_from(units).unwrap_or(MOST).clamp(least, MOST)
}

fn milliseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_millis()).unwrap_or(i128::MAX)
}
