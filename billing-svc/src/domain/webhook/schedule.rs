//! When a failed attempt is followed by the next: at once, then after longer and longer pauses, over three days.

use std::time::Duration;

/// Pauses after the first, second, … attempt. With the attempt at once: ten attempts within 75 h 35 min, and what
/// jitter adds.
pub const PAUSES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(14 * 3600),
    Duration::from_secs(20 * 3600),
    Duration::from_secs(24 * 3600),
];

/// A pause is stretched or shortened by up to a fifth, so that what failed together is not repeated together.
pub const JITTER_PER_MILLE: u32 = 200;

/// A receiver may ask for a longer pause with `Retry-After`, up to this.
pub const LONGEST_ASKED: Duration = Duration::from_secs(24 * 3600);

/// The pause before the next attempt, after `tries` that failed; `None`: there is none. `jitter` is from 0 to twice
/// [`JITTER_PER_MILLE`], evenly; `asked` is what the receiver asked for.
pub fn pause(tries: i32, jitter: u32, asked: Option<Duration>) -> Option<Duration> {
    let pause = *PAUSES.get(usize::try_from(tries.checked_sub(1)?).ok()?)?;
    let per_mille = 1_000 - JITTER_PER_MILLE + jitter.min(2 * JITTER_PER_MILLE);
    let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
    Some((pause * per_mille / 1_000).max(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: u32 = JITTER_PER_MILLE;

    #[test]
    fn ten_attempts_are_made_over_three_days() {
        let pauses: Vec<_> = (1..).map_while(|tries| pause(tries, NONE, None)).collect();
        assert_eq!(pauses, PAUSES);
        assert_eq!(pauses.iter().sum::<Duration>(), Duration::from_secs(75 * 3600 + 35 * 60 + 5));
        assert_eq!(pause(10, NONE, Some(Duration::from_secs(1))), None);
    }

    #[test]
    fn jitter_is_a_fifth_and_the_receiver_may_ask_for_more_and_not_for_less() {
        let (shortest, longest) = (Duration::from_secs(240), Duration::from_secs(360));
        assert_eq!([pause(2, 0, None), pause(2, 400, None)], [Some(shortest), Some(longest)]);
        assert_eq!(pause(2, u32::MAX, None), Some(longest));
        assert_eq!(pause(1, NONE, Some(Duration::from_secs(60))), Some(Duration::from_secs(60)));
        assert_eq!(pause(2, NONE, Some(Duration::from_secs(60))), Some(PAUSES[1]));
        assert_eq!(pause(1, NONE, Some(Duration::MAX)), Some(LONGEST_ASKED));
    }
}
