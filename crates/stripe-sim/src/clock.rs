//! The clock of the stand-in: the real one, moved ahead, and perhaps running faster.

use std::sync::Mutex;

use crate::http::lock;

pub(crate) struct Clock {
    /// The real time, in Unix milliseconds.
    real: fn() -> i64,
    pace: Mutex<Pace>,
}

/// How many seconds pass in a real one, since when.
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

    /// By how much it is ahead because it runs faster.
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
        (gained + 999) / 1000
    }
}
