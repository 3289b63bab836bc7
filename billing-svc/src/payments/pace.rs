//! How fast Stripe may be called: one rate for all accounts, a pause for all when it asks for one.

use std::{
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use rand::Rng;
use tokio::time::Instant;

/// Longest pause that a run waits for; what Stripe asks beyond it is left to the next run.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Shared by everything that calls Stripe.
#[derive(Debug)]
pub struct Pace {
    limiter: DefaultDirectRateLimiter,
    paused_until: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many calls a second, with a burst of a tenth of that.
    pub fn new(per_second: NonZeroU32) -> Self {
        let burst = NonZeroU32::new(per_second.get() / 10).unwrap_or(NonZeroU32::MIN);
        Self {
            limiter: RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)),
            paused_until: Mutex::default(),
        }
    }

    /// Waits until a call may be made.
    pub async fn wait(&self) {
        loop {
            let paused = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
            match paused.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => break,
            }
        }
        self.limiter.until_ready().await;
    }

    /// Makes all callers wait for so long.
    pub fn pause_all(&self, time: Duration) {
        let until = Instant::now() + time.min(LONGEST_PAUSE);
        let mut paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = (*paused).max(Some(until));
    }
}

/// How long to wait before the next try: twice as long each time, between half and all of that.
pub fn backoff(tries: u32, rng: &mut impl Rng) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << tries.min(10)).min(LONGEST_BACKOFF);
    full / 2 + (full / 2).mul_f64(rng.random())
}
