//! The accounts of a seed: what they used, and what they owe by that, reckoned here from the counts alone.

use chrono::{DateTime, Utc};
use rand::{Rng, rngs::StdRng};

use crate::stripe::Poison;

/// Of the plan `pro`: units that it includes, and micros of each beyond them. `enterprise` includes all.
const INCLUDED: i64 = 100_000;
const UNIT_MICROS: i64 = 1_000;
const CENT_MICROS: i64 = 10_000;

/// Units counted while a plan was in force.
struct Segment {
    is_pro: bool,
    from: i64,
    to: i64,
}

/// A period of an account.
pub(super) struct Period {
    pub(super) start: DateTime<Utc>,
    /// Over, but for what comes late; then nothing comes any more.
    pub(super) is_over: bool,
    pub(super) is_settled: bool,
    /// The last one is open.
    segments: Vec<Segment>,
}

impl Period {
    pub(super) fn new(start: DateTime<Utc>, is_over: bool) -> Self {
        let first = Segment { is_pro: true, from: 0, to: 0 };
        Self { start, is_over, is_settled: false, segments: vec![first] }
    }

    fn open(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a period has a segment")
    }

    /// Σ over the segments of (end - max(included, start)) × price: whole cents, rounded once it is settled.
    pub(super) fn cents(&self) -> i64 {
        let paid = self.segments.iter().filter(|segment| segment.is_pro);
        let units: i64 = paid.map(|segment| (segment.to - segment.from.max(INCLUDED)).max(0)).sum();
        let half = if self.is_settled { CENT_MICROS / 2 } else { 0 };
        (units * UNIT_MICROS + half).div_euclid(CENT_MICROS)
    }
}

/// What becomes wrong with a customer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trouble {
    pub(super) poison: Poison,
    /// In which round.
    pub(super) from: u32,
    /// From which round on it is right again; `None`: never.
    pub(super) until: Option<u32>,
}

/// How a subscription ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// At once, in a round that is not before its renewal.
    AtOnce(u32),
    /// With its first period.
    WithPeriod,
}

/// A subscription at Stripe, in a time of its own there.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) id: String,
    pub(super) clock: String,
    /// What that clock says.
    pub(super) time: DateTime<Utc>,
    /// When its first period ends: the current one of ours began then.
    pub(super) renewal: DateTime<Utc>,
    /// In which round that comes.
    pub(super) renews_in: u32,
    /// `None`: it goes on.
    pub(super) ending: Option<Ending>,
    pub(super) has_ended: bool,
}

/// An account, and what it is for.
pub(super) struct Account {
    pub(super) eco_id: String,
    pub(super) customer: String,
    pub(super) subscription: Option<Subscription>,
    pub(super) trouble: Option<Trouble>,
    /// The current one is the last.
    pub(super) periods: Vec<Period>,
}

/// Units to be counted.
pub(super) struct Usage {
    pub(super) eco_id: String,
    pub(super) period_start: DateTime<Utc>,
    pub(super) segment: i32,
    pub(super) units: i64,
}

impl Account {
    fn current(&mut self) -> &mut Period {
        self.periods.last_mut().expect("an account has a period")
    }

    /// Whether its customer can be charged from beginning to end.
    pub(super) fn is_sound(&self) -> bool {
        self.trouble.is_none()
    }

    /// Why it cannot be charged in the end.
    pub(super) fn lasting_poison(&self) -> Option<Poison> {
        self.trouble.filter(|trouble| trouble.until.is_none()).map(|trouble| trouble.poison)
    }

    /// Whether its customer can be charged again since some round.
    pub(super) fn is_mended(&self, round: u32) -> bool {
        self.trouble.and_then(|trouble| trouble.until).is_some_and(|until| until <= round)
    }

    /// Whether it is as it was made: nothing is at work on its periods but what is counted.
    pub(super) fn may_change(&self) -> bool {
        self.is_sound() && self.subscription.as_ref().is_none_or(|subscription| !subscription.has_ended)
    }

    /// Its subscription is over: nothing more is counted by it, and what was is rounded for good.
    pub(super) fn end(&mut self) {
        if let Some(subscription) = &mut self.subscription {
            subscription.has_ended = true;
        }
        self.periods.iter_mut().for_each(|period| period.is_settled = true);
    }

    /// What is used until a round; most in the first one.
    pub(super) fn grow(&mut self, round: u32, rng: &mut StdRng) -> Vec<Usage> {
        let mut used = Vec::new();
        let must_owe = !self.is_sound();
        for period in &mut self.periods {
            if period.is_settled || (round > 0 && !must_owe && rng.random_bool(0.2)) {
                continue;
            }
            let units = match round {
                0 if must_owe => INCLUDED + rng.random_range(20..200),
                0 => INCLUDED + rng.random_range(-40..200),
                _ => rng.random_range(20..300),
            };
            period.open().to += units;
            used.push(Usage {
                eco_id: self.eco_id.clone(),
                period_start: period.start,
                segment: (period.segments.len() - 1) as i32,
                units,
            });
        }
        used
    }

    /// A correction of its usage, if there is something to correct.
    pub(super) fn correct(&mut self, rng: &mut StdRng) -> Option<i64> {
        let open = self.current().open();
        let most = (open.to - open.from).min(150);
        if most < 1 {
            return None;
        }
        let units = -rng.random_range(1..=most);
        open.to += units;
        Some(units)
    }

    /// Its plan changes; whether it is `pro` now.
    pub(super) fn change_plan(&mut self) -> bool {
        let current = self.current();
        let Segment { is_pro, to, .. } = *current.open();
        current.segments.push(Segment { is_pro: !is_pro, from: to, to });
        !is_pro
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_rounded_down_and_half_up_in_the_end() {
        let mut period = Period::new(DateTime::UNIX_EPOCH, true);
        period.open().to = INCLUDED + 15;
        assert_eq!(period.cents(), 1);
        period.is_settled = true;
        assert_eq!(period.cents(), 2);
        period.segments.push(Segment { is_pro: false, from: INCLUDED + 15, to: INCLUDED + 1_000 });
        period.segments.push(Segment { is_pro: true, from: INCLUDED + 1_000, to: INCLUDED + 1_029 });
        assert_eq!(period.cents(), 4);
    }
}
