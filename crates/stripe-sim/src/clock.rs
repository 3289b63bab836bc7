//! The clock of the stand-in: the real one, moved ahead, and perhaps running faster or standing still.

use std::sync::Mutex;

use crate::http::lock;

pub(crate) struct Clock {
    /// The real time, in Unix milliseconds.
    real: fn() -> i64,
    pace: Mutex<Pace>,
}

/// How many seconds pass in a real one, since when. While none do, it is moved by hand alone.
#[derive(Clone, Copy)]
struct Pace {
    scale: u32,
    since: i64,
}

impl Clock {
    pub(crate) fn new(real: fn() -> i64) -> Self {
        Self { real, pace: Mutex::new(Pace { scale: 1, since: real() }) }
    }

    /// The real time, in Unix seconds.
    pub(crate) fn real(&self) -> i64 {
        (self.real)().div_euclid(1000)
    }

    /// The time in Unix milliseconds, when the clock has been moved ahead by so many seconds.
    pub(crate) fn millis(&self, advance: i64) -> i64 {
        (self.real)() + advance * 1000 + self.gained()
    }

    /// By how much it is ahead because it runs faster; negative, because it stands still.
    fn gained(&self) -> i64 {
        let pace = *lock(&self.pace);
        ((self.real)() - pace.since).max(0) * (i64::from(pace.scale) - 1)
    }

    pub(crate) fn scale(&self) -> u32 {
        lock(&self.pace).scale
    }

    /// Sets the pace. Says by how many seconds the clock has to be moved ahead for what it gained
    /// so far, so that it never goes back.
    pub(crate) fn set_scale(&self, scale: u32) -> i64 {
        let gained = self.gained();
        *lock(&self.pace) = Pace { scale, since: (self.real)() };
        (gained + 999).div_euclid(1000)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::Clock;

    static REAL: AtomicI64 = AtomicI64::new(1_000_000);

    #[test]
    fn it_runs_faster_or_stands_still_and_never_goes_back() {
        let clock = Clock::new(|| REAL.load(Ordering::SeqCst));
        let (mut advance, mut last) = (0, clock.millis(0));
        for (scale, expected) in [(100, 250_000), (0, 0), (7, 17_500), (1, 2_500), (0, 0), (1, 2_500)] {
            advance += clock.set_scale(scale);
            let before = clock.millis(advance);
            assert!((last..last + 1_000).contains(&before), "{scale}: {last} {before}");
            REAL.fetch_add(2_500, Ordering::SeqCst);
            last = clock.millis(advance);
            assert_eq!(last - before, expected, "{scale}");
        }
    }
}
