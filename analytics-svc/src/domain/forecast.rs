//! How the current period is expected to end: units, cost, and when the limit is reached.
//!
//! The method is the mean of whole days, of the same weekday once there are two weeks of them, with a normal prediction
//! interval from how far the days were from their means: the "mean" and the seasonal methods of R. J. Hyndman and
//! G. Athanasopoulos, "Forecasting: Principles and Practice", 3rd edition (OTexts, 2021), sections 5.2 and 5.5. The days
//! to come are taken as independent of each other, so that their variances add up; how well a mean is known from its
//! few days comes on top. Of a day that is not over, what is left of it counts by its share.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, TimeDelta, Utc};
use nexus_core::{
    money::{self, Currency, Micros, OutOfRange, UnitPrice},
    period::Period,
    quota::Limit,
    spend_cap::{self, OpenSegment},
};

/// Whole days that are looked at: four of each weekday.
pub const HISTORY_DAYS: i64 = 28;
/// From so many whole days on weekdays are told apart.
const WEEKDAYS_FROM: usize = 14;
/// Half the width of an interval that holds four of five, in standard deviations.
const INTERVAL: f64 = 1.2816;
const DAY_SECONDS: f64 = 86_400.0;
/// Before so much of an account's first day is over, its pace is told as if so much were.
const LEAST_PART_OF_A_DAY: f64 = 1.0 / 24.0;

/// What an account used day by day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Whole UTC days up to yesterday, oldest first, from the first one with usage; days without are 0.
    whole_days: Vec<i64>,
    /// Units of today so far.
    today: i64,
}

impl History {
    /// From the days with usage, in any order; those after today are left out.
    pub fn new(today: NaiveDate, days: &[(NaiveDate, i64)]) -> Self {
        let age = |day: NaiveDate| today.signed_duration_since(day).num_days();
        let oldest = days.iter().map(|(day, _)| age(*day)).max().unwrap_or(0).clamp(0, HISTORY_DAYS);
        let mut whole_days = vec![0; oldest as usize];
        let mut of_today = 0;
        for (day, units) in days {
            match age(*day) {
                0 => of_today += units,
                age if (1..=oldest).contains(&age) => whole_days[(oldest - age) as usize] += units,
                _ => {}
            }
        }
        Self { whole_days, today: of_today }
    }
}

/// Where an account stands in its current period, and by which terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Database time.
    pub now: DateTime<Utc>,
    /// The period.
    pub period: Period,
    /// Units recorded in it; corrections count.
    pub recorded: i64,
    /// Of these, corrections, which hard limits know nothing of.
    pub adjusted: i64,
    /// Units included.
    pub included: Limit,
    /// Whether the plan refuses those beyond.
    pub hard: bool,
    /// Price of those beyond; 0: not billed.
    pub price: UnitPrice,
    /// Units recorded in the segments that changes of plan have closed.
    pub closed_recorded: i64,
    /// Of these, those that are billed, with their prices.
    pub closed_overage: Vec<(UnitPrice, i64)>,
    /// What the overage may cost.
    pub spend_cap: Option<Micros>,
    /// Monthly price of the subscription where it counts in the MRR, else 0.
    pub subscription: Micros,
    /// Currency of the account.
    pub currency: Currency,
}

impl Standing {
    /// Units that the spend cap pays for, where it refuses those beyond.
    fn capped(&self) -> Limit {
        let (included, start_count, price) = (self.included, self.closed_recorded, self.price);
        let open = OpenSegment { included, start_count, price };
        self.spend_cap.and_then(|cap| spend_cap::limit(cap, &self.closed_overage, &open))
    }

    /// The limit that is told: units beyond it are refused, or else those that are included.
    pub fn limit(&self) -> Limit {
        if self.hard { self.included } else { self.capped().or(self.included) }
    }

    /// Recorded units beyond which no more are admitted.
    fn ceiling(&self) -> Limit {
        if self.hard { self.included.map(|limit| limit.saturating_add(self.adjusted)) } else { self.capped() }
    }

    /// Recorded units at which the limit is reached.
    fn threshold(&self) -> Limit {
        self.ceiling().or(self.included)
    }

    /// What the overage costs where the period ends with so many units.
    fn overage_at(&self, units: i64) -> Result<Micros, OutOfRange> {
        let open = match self.price.micros {
            0 => 0,
            _ => money::overage_units(self.included, self.closed_recorded, units),
        };
        money::cost(self.closed_overage.iter().copied().chain([(self.price, open)]))
    }
}

/// The end of a period, as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Units.
    pub units: i64,
    /// Cost of the overage.
    pub overage: Micros,
}

/// A forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// What is expected.
    pub expected: End,
    /// Lower end of the range.
    pub low: End,
    /// Upper end of the range.
    pub high: End,
    /// When the limit is expected to be reached: now where it is already; `None`: not in this period.
    pub limit_reached: Option<DateTime<Utc>>,
}

/// How the period is expected to end.
pub fn forecast(standing: &Standing, history: &History) -> Result<Forecast, OutOfRange> {
    let pace = Pace::of(history, standing.now);
    let stretches = stretches(standing.now, standing.period.end);
    let (rest, deviation) = pace.sum(&stretches);
    let end = |more: f64| {
        let units = standing.recorded.saturating_add(more.max(0.0) as i64);
        let units = standing.ceiling().map_or(units, |ceiling| units.min(ceiling.max(standing.recorded)));
        Ok(End { units, overage: standing.overage_at(units)? })
    };
    Ok(Forecast {
        expected: end(rest.round())?,
        low: end((rest - INTERVAL * deviation).floor())?,
        high: end((rest + INTERVAL * deviation).ceil())?,
        limit_reached: standing.threshold().and_then(|limit| {
            pace.reaches(limit.saturating_sub(standing.recorded), standing.now, &stretches)
        }),
    })
}

/// A day to come, or what is left of it within the period.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: DateTime<Utc>,
    /// From Monday on.
    weekday: usize,
    /// Of a whole day.
    share: f64,
}

fn stretches(now: DateTime<Utc>, end: DateTime<Utc>) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let mut start = now;
    while start < end {
        let midnight = start_of(start.date_naive()) + TimeDelta::days(1);
        let until = midnight.min(end);
        let share = seconds(until - start) / DAY_SECONDS;
        stretches.push(Stretch { start, weekday: weekday(start.date_naive()), share });
        start = until;
    }
    stretches
}

/// Units a day, as far as the past tells.
struct Pace {
    /// Of each weekday.
    means: [f64; 7],
    /// From how many days each mean is.
    days: f64,
    /// Whether each weekday's mean is of its own days.
    by_weekday: bool,
    /// How far a day is from its mean.
    variance: f64,
}

impl Pace {
    fn of(history: &History, now: DateTime<Utc>) -> Self {
        let days = &history.whole_days;
        match days.len() {
            0 => Self::of_today(history.today, now),
            // How far days are from each other cannot be told from one: as far as from nothing.
            1 => Self::all_alike(days[0] as f64, 1.0, (days[0] as f64).powi(2)),
            n if n < WEEKDAYS_FROM => {
                let mean = days.iter().map(|units| *units as f64).sum::<f64>() / n as f64;
                let squares = days.iter().map(|units| (*units as f64 - mean).powi(2)).sum::<f64>();
                Self::all_alike(mean, n as f64, squares / (n - 1) as f64)
            }
            n => Self::of_weekdays(days, now.date_naive() - TimeDelta::days(n as i64)),
        }
    }

    fn all_alike(mean: f64, days: f64, variance: f64) -> Self {
        Self { means: [mean; 7], days, by_weekday: false, variance }
    }

    /// An account's first day goes on as it went so far.
    fn of_today(units: i64, now: DateTime<Utc>) -> Self {
        let gone = seconds(now - start_of(now.date_naive())) / DAY_SECONDS;
        let mean = units as f64 / gone.max(LEAST_PART_OF_A_DAY);
        Self::all_alike(mean, 1.0, mean.powi(2))
    }

    fn of_weekdays(days: &[i64], first: NaiveDate) -> Self {
        let of = |wanted: usize| {
            let place = move |n: usize| (weekday(first) + n) % 7;
            days.iter().enumerate().filter(move |(n, _)| place(*n) == wanted).map(|(_, units)| *units as f64)
        };
        let means: [f64; 7] = std::array::from_fn(|day| of(day).sum::<f64>() / of(day).count() as f64);
        let squares: f64 = (0..7)
            .flat_map(|day| of(day).map(move |units| (day, units)))
            .map(|(day, units): (usize, f64)| (units - means[day]).powi(2))
            .sum();
        Self {
            means,
            days: days.len() as f64 / 7.0,
            by_weekday: true,
            variance: squares / (days.len() - 7) as f64,
        }
    }

    /// Units of these stretches together, and their standard deviation.
    fn sum(&self, stretches: &[Stretch]) -> (f64, f64) {
        let units = stretches.iter().map(|s| self.means[s.weekday] * s.share).sum();
        let mut shares = [0.0; 7];
        for stretch in stretches {
            shares[if self.by_weekday { stretch.weekday } else { 0 }] += stretch.share;
        }
        let of_days = shares.iter().sum::<f64>();
        let of_means = shares.iter().map(|share| share * share / self.days).sum::<f64>();
        (units, (self.variance * (of_days + of_means)).sqrt())
    }

    /// When so many more units are reached, within these stretches.
    fn reaches(&self, more: i64, now: DateTime<Utc>, stretches: &[Stretch]) -> Option<DateTime<Utc>> {
        if more <= 0 {
            return Some(now);
        }
        let mut left = more as f64;
        for stretch in stretches {
            let units = self.means[stretch.weekday] * stretch.share;
            if units >= left {
                let part = stretch.share * DAY_SECONDS * left / units;
                return Some(stretch.start + TimeDelta::microseconds((part * 1e6) as i64));
            }
            left -= units;
        }
        None
    }
}

fn weekday(day: NaiveDate) -> usize {
    day.weekday().num_days_from_monday() as usize
}

fn start_of(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

fn seconds(time: TimeDelta) -> f64 {
    time.num_microseconds().map_or(0.0, |micros| micros as f64 / 1e6)
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
