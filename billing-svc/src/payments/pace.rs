//! How fast Stripe may be called: one rate for all accounts, a pause for all when it asks for one.

use std::{
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use rand::Rng;
use tokio::time::Instant;

/// Longest pause within which a charge is tried again; one that Stripe answers so is left to the next run.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause that runs keep: nobody waits for a day because of one header.
const LONGEST_OF_RUNS: Duration = Duration::from_secs(3600);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Shared by everything that calls Stripe.
#[derive(Debug)]
pub struct Pace {
    limiter: DefaultDirectRateLimiter,
    /// Had by the one who waits for the next call; the others wait in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    paused_until: Mutex<Option<Instant>>,
    longest_pause: Duration,
}

impl Pace {
    /// So many calls a second, with a burst of a tenth of that. A pause that Stripe asks for is kept whole.
    pub fn new(per_second: NonZeroU32) -> Self {
        Self::pausing(per_second, LONGEST_OF_RUNS)
    }

    /// The same for those whose callers wait, or who hold something meanwhile: of a pause no more is kept than they may
    /// wait; what they ask for is asked for again later.
    pub fn of_waiting_callers(per_second: NonZeroU32) -> Self {
        Self::pausing(per_second, LONGEST_PAUSE)
    }

    fn pausing(per_second: NonZeroU32, longest_pause: Duration) -> Self {
        let burst = NonZeroU32::new(per_second.get() / 10).unwrap_or(NonZeroU32::MIN);
        Self {
            limiter: RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)),
            turn: tokio::sync::Mutex::default(),
            paused_until: Mutex::default(),
            longest_pause,
        }
    }

    /// Waits until a call may be made.
    pub async fn wait(&self) {
        let _turn = self.turn.lock().await;
        loop {
            while let Some(until) = self.paused_until() {
                tokio::time::sleep_until(until).await;
            }
            self.limiter.until_ready().await;
            // A pause may have begun meanwhile.
            if self.paused_until().is_none() {
                return;
            }
        }
    }

    fn paused_until(&self) -> Option<Instant> {
        let until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }

    /// Makes all callers wait for so long.
    pub fn pause_all(&self, time: Duration) {
        let until = Instant::now() + time.min(self.longest_pause);
        let mut paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = (*paused).max(Some(until));
    }
}

/// How long to wait before the next try: twice as long each time, between half and all of that.
pub fn backoff(tries: u32, rng: &mut impl Rng) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << tries.min(10)).min(LONGEST_BACKOFF);
    full / 2 + (full / 2).mul_f64(rng.random())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[tokio::test]
    async fn a_pause_holds_up_who_waits_already() {
        // So slow that whoever waits does so still when the pause begins, on a machine that others use, too.
        let pace = Arc::new(Pace::new(NonZeroU32::new(2).expect("not zero")));
        pace.wait().await;
        let waiting = tokio::spawn({
            let pace = pace.clone();
            async move { pace.wait().await }
        });
        tokio::task::yield_now().await;
        let (begun, pause) = (Instant::now(), Duration::from_millis(800));
        pace.pause_all(pause);
        assert!(waiting.await.is_ok());
        assert!(begun.elapsed() >= pause, "a call was made within the pause");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_pause_is_kept_whole_and_an_absurd_one_is_not() {
        let pace = Pace::new(NonZeroU32::MIN);
        for (asked, kept) in [(Duration::from_secs(1_800), 1_800), (Duration::MAX, 3_600)] {
            let begun = Instant::now();
            pace.pause_all(asked);
            pace.wait().await;
            assert!((kept..kept + 60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_backoff_is_between_half_and_all_of_twice_the_last() {
        let mut rng = StdRng::seed_from_u64(1);
        for (tries, full) in [(0, 200), (1, 400), (4, 3_200), (5, 5_000), (40, 5_000)] {
            let full = Duration::from_millis(full);
            let waits: Vec<_> = (0..100).map(|_| backoff(tries, &mut rng)).collect();
            assert!(waits.iter().all(|wait| (full / 2..=full).contains(wait)), "{tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "no jitter");
        }
    }
}
