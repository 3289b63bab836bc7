//! How long to wait after a failure.

use std::time::Duration;

use rand::Rng;

/// No server may make a client wait longer than this.
const LONGEST_TOLD: Duration = Duration::from_secs(60);

/// Exponential pauses with jitter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// Before the first retry.
    pub(crate) first: Duration,
    /// However often it failed.
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The pause after so many failures in a row, at least 1: between half of the exponential one and all of
    /// it, so that clients that failed together do not come back together. A server that told its own delay
    /// gets that at least, and up to half more.
    pub(crate) fn pause(&self, failures: u32, told: Option<Duration>, rng: &mut impl Rng) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        let own = full.mul_f64(rng.random_range(0.5..=1.0));
        match told.map(|t| t.min(LONGEST_TOLD)) {
            Some(told) if told >= own => told.mul_f64(rng.random_range(1.0..=1.5)),
            _ => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

    fn pauses(failures: u32, told: Option<Duration>) -> Vec<Duration> {
        (0..200).map(|seed| BACKOFF.pause(failures, told, &mut StdRng::seed_from_u64(seed))).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        for (failures, full) in [(1, 100), (2, 200), (4, 800), (7, 5_000), (u32::MAX, 5_000)] {
            let pauses = pauses(failures, None);
            assert!(
                pauses.iter().all(|p| (MS * (full / 2)..=MS * full).contains(p)),
                "{failures}: {pauses:?}"
            );
            assert!(pauses.iter().any(|p| *p != pauses[0]), "{failures}: no jitter");
        }
    }

    #[test]
    fn a_told_delay_is_kept_and_a_minute_at_most() {
        assert!(pauses(1, Some(MS * 1_000)).iter().all(|p| (MS * 1_000..=MS * 1_500).contains(p)));
        assert!(pauses(7, Some(MS * 1)).iter().all(|p| *p >= MS * 2_500), "less than our own is not kept");
        let longest = LONGEST_TOLD.mul_f64(1.5);
        assert!(pauses(1, Some(Duration::from_secs(86_400))).iter().all(|p| *p <= longest));
    }
}
