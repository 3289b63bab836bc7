//! Who the demo accounts are, when their periods begin, how much they use.

use chrono::{DateTime, Months, TimeDelta, Utc};
use nexus_core::{period::Period, plan::Plan};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{ENTERPRISE, FREE, PRO, names};

const SEED: u64 = 0x4e58_5553_2026;
/// How far back usage goes.
pub(super) const DAYS: i64 = 90;
/// Every current period began at least so long ago: the days since then are wholly in the raw log.
const PERIOD_BEGAN_DAYS_AGO: std::ops::Range<i64> = 4..27;
const FREE_LIMIT: i64 = 1_000;
const FREE_CALLS_LEFT: i64 = 50;
/// Pro accounts beyond their 100,000.
const PRO_OVER: [i64; 4] = [104_350, 112_900, 131_275, 158_040];
const PRO_DEMO_UNITS: i64 = 62_480;
const ENTERPRISE_UNITS: [i64; 5] = [1_240_300, 412_750, 655_120, 1_902_480, 3_104_900];

/// Companies before this one are on pro, those from it on enterprise.
const FIRST_ENTERPRISE: usize = 45;

/// A demo account.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) eco_id: String,
    pub(super) name: String,
    pub(super) email: String,
    pub(super) plan: Plan,
    pub(super) created: DateTime<Utc>,
    pub(super) anchor: DateTime<Utc>,
    /// The current period.
    pub(super) period: Period,
    /// Units recorded in the current period so far.
    pub(super) units: i64,
    /// Events they come in.
    pub(super) events: i64,
    /// Units a day before the current period, at most: no earlier period was over the plan's limit.
    pub(super) earlier_units_a_day: i64,
    /// Hours its working day begins after UTC's.
    pub(super) utc_offset_hours: i64,
    /// Seed of its traffic.
    pub(super) seed: u64,
}

/// All of them: 100 free, 45 pro, 5 enterprise.
pub(super) fn all(now: DateTime<Utc>) -> Vec<Account> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut accounts = Vec::with_capacity(150);
    for n in 0..100 {
        accounts.push(free(n, now, &mut rng));
    }
    for n in 0..FIRST_ENTERPRISE {
        accounts.push(pro(n, now, &mut rng));
    }
    for n in 0..5 {
        accounts.push(enterprise(n, now, &mut rng));
    }
    accounts
}

/// The email of a plan's first account, which has credentials of its own.
pub(super) fn email_of_first(plan: Plan) -> String {
    match plan {
        Plan::Free => person_email(0),
        Plan::Pro => company(0, PRO).email,
        Plan::Enterprise => company(FIRST_ENTERPRISE, ENTERPRISE).email,
    }
}

fn person_email(n: usize) -> String {
    let (first, last) = names::person(n);
    format!("{}.{}@mail.example", first.to_lowercase(), last.to_lowercase())
}

fn free(n: usize, now: DateTime<Utc>, rng: &mut StdRng) -> Account {
    let (first, last) = names::person(n);
    let (first, last) = (first.to_lowercase(), last.to_lowercase());
    let who = Who {
        eco_id: if n == 0 { FREE.to_owned() } else { format!("eco_{first}_{last}") },
        name: names::person(n),
        separator: " ",
        email: person_email(n),
    };
    let mut account = account(who, Plan::Free, now, rng);
    account.units = match n {
        0 => FREE_LIMIT - FREE_CALLS_LEFT,
        // Signed up, not started.
        n if n % 16 == 5 => 0,
        // Most try a little, few much; nobody is on the way to the limit within the period.
        _ => share_of(account.elapsed_percent(now) * 8, skewed(rng)).max(3),
    };
    account.events = account.units;
    // At this pace a month has 700 calls, growth and chance included less than 1,000.
    account.earlier_units_a_day = 22;
    account
}

fn pro(n: usize, now: DateTime<Utc>, rng: &mut StdRng) -> Account {
    let mut account = account(company(n, PRO), Plan::Pro, now, rng);
    account.units = match n {
        0 => PRO_DEMO_UNITS,
        n if n % 10 == 7 => PRO_OVER[n / 10],
        _ => share_of(account.elapsed_percent(now) * 850, skewed(rng)).max(1_200),
    };
    account.events = (account.units / 12).clamp(300, 4_500);
    account.earlier_units_a_day = 2_400;
    account
}

fn enterprise(n: usize, now: DateTime<Utc>, rng: &mut StdRng) -> Account {
    let mut account = account(
        Who {
            eco_id: if n == 0 { ENTERPRISE.to_owned() } else { company(FIRST_ENTERPRISE + n, "").eco_id },
            ..company(FIRST_ENTERPRISE + n, "")
        },
        Plan::Enterprise,
        now,
        rng,
    );
    account.units = ENTERPRISE_UNITS[n];
    account.events = 6_000 + account.units / 400;
    account.earlier_units_a_day = i64::MAX;
    account
}

struct Who {
    eco_id: String,
    name: (&'static str, &'static str),
    separator: &'static str,
    email: String,
}

/// The n-th company; the 0th has the id given.
fn company(n: usize, id_of_first: &str) -> Who {
    let name = names::company(n);
    let (word, trade) = (name.0.to_lowercase(), name.1.to_lowercase());
    let eco_id = if n == 0 { id_of_first.to_owned() } else { format!("eco_{word}_{trade}") };
    Who { eco_id, name, separator: " ", email: format!("billing@{word}-{trade}.example") }
}

fn account(who: Who, plan: Plan, now: DateTime<Utc>, rng: &mut StdRng) -> Account {
    let second_of_day = TimeDelta::seconds(rng.random_range(0..86_400));
    let midnight = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    let began = midnight - TimeDelta::days(rng.random_range(PERIOD_BEGAN_DAYS_AGO)) - second_of_day;
    // A quarter has signed up in this period, the others up to a year earlier.
    let months = if rng.random_ratio(1, 4) { 0 } else { rng.random_range(1..=12) };
    let anchor = began - Months::new(months);
    Account {
        eco_id: who.eco_id,
        name: format!("{}{}{}", who.name.0, who.separator, who.name.1),
        email: who.email,
        plan,
        created: anchor,
        anchor,
        period: Period::containing(anchor, now),
        units: 0,
        events: 0,
        earlier_units_a_day: 0,
        // America's west coast to Japan; most are in Europe.
        utc_offset_hours: [-8, -5, -5, 0, 1, 1, 1, 2, 5, 9][rng.random_range(0..10)],
        seed: rng.random(),
    }
}

impl Account {
    fn elapsed_percent(&self, now: DateTime<Utc>) -> i64 {
        let whole = (self.period.end - self.period.start).num_minutes();
        100 * (now - self.period.start).num_minutes() / whole
    }
}

/// A number up to 1,000, small ones far more often than large ones.
fn skewed(rng: &mut StdRng) -> i64 {
    let (a, b): (i64, i64) = (rng.random_range(20..=1_000), rng.random_range(20..=1_000));
    a * b / 1_000
}

fn share_of(most: i64, per_mille: i64) -> i64 {
    most * per_mille / 1_000
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn as_many_of_each_plan_as_the_reference_sum_has() {
        let now = DateTime::from_timestamp(1_790_000_000, 0).expect("a time");
        let accounts = all(now);
        let mut by_plan: HashMap<Plan, usize> = HashMap::new();
        for account in &accounts {
            *by_plan.entry(account.plan).or_default() += 1;
        }
        assert_eq!(by_plan, HashMap::from([(Plan::Free, 100), (Plan::Pro, 45), (Plan::Enterprise, 5)]));
        assert_eq!(accounts.iter().map(|a| &a.eco_id).collect::<HashSet<_>>().len(), 150);
        assert_eq!(accounts.iter().map(|a| &a.email).collect::<HashSet<_>>().len(), 150);
        for id in [FREE, PRO, ENTERPRISE] {
            assert!(accounts.iter().any(|a| a.eco_id == id), "{id}");
        }
    }

    /// On every day of a leap cycle's months, so that clamped anchors are met.
    #[test]
    fn totals_fit_the_plans_whatever_the_day() {
        for day in 0..400 {
            let now = DateTime::from_timestamp(1_790_000_000 + day * 86_400, 0).expect("a time");
            let accounts = all(now);
            assert!(accounts.iter().map(|a| a.events).sum::<i64>() < 400_000);
            assert_eq!(accounts.iter().filter(|a| a.plan == Plan::Pro && a.units > 100_000).count(), 4);
            for a in &accounts {
                assert!(a.period.contains(now) && a.period.contains(now - TimeDelta::days(3)), "{a:?}");
                assert!(now - a.period.start < TimeDelta::days(32) && a.created <= a.period.start, "{a:?}");
                assert!(a.plan != Plan::Free || a.units <= 950, "{a:?}");
                assert!(a.events <= a.units, "{a:?}");
            }
        }
    }
}
