//! Random histories of an account against the ledger's own arithmetic: calls, late calls, adjustments, changes of plan,
//! new versions, runs that end well, are cut off, are refused or in doubt, and settlements. Whatever happens, what is
//! at Stripe differs from what is owed by less than a cent while a period is open and by nothing once it is settled, and
//! every charge's basis adds up to it.
//!
//! What is owed is computed apart, from a plain record of the segments, with fractions. 20,000 histories are run with the
//! other tests; `LEDGER_HISTORIES` says another number, and a failure names its seed, which `LEDGER_SEED` runs alone.

use std::{collections::HashMap, env, ops::Range, thread};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_billing::domain::{
    basis::Basis,
    charge::{Intent, Target},
    overage::{ClosedSegment, Facts, Ledger, Next, Price, Terms},
    period::ParkReason,
};
use nexus_core::{
    money::{Currency, UnitPrice},
    period::{Period, SETTLEMENT_GRACE},
    plan::Plan,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const HISTORIES: u64 = 20_000;
/// What happens in a period, at most.
const STEPS: usize = 24;

/// A segment as it really was.
#[derive(Debug, Clone, Copy)]
struct Segment {
    terms: Terms,
    start: i64,
    end: i64,
}

/// Stripe: items by the key they were made with.
#[derive(Debug, Default)]
struct Stripe {
    items: HashMap<String, i64>,
}

/// A period with its ledger, as the service keeps them.
struct World {
    rng: StdRng,
    facts: Facts,
    /// The same, as a plain record.
    segments: Vec<Segment>,
    /// An intent that is written down and in doubt.
    pending: Option<Intent>,
    /// Amounts that Stripe has, by the ledger.
    succeeded: Vec<i64>,
    stripe: Stripe,
    /// Terms that come with the next period.
    next_terms: Terms,
    settled: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let currency: Currency =
            ["USD", "JPY", "KWD"][rng.random_range(0..3)].parse().unwrap_or(Currency::USD);
        let terms = terms(&mut rng);
        let start = DateTime::UNIX_EPOCH + TimeDelta::days(rng.random_range(0..1_000));
        let facts = facts(currency, terms, Period { start, end: start + TimeDelta::days(30) });
        Self {
            rng,
            facts,
            segments: vec![Segment { terms, start: 0, end: 0 }],
            pending: None,
            succeeded: Vec::new(),
            stripe: Stripe::default(),
            next_terms: terms,
            settled: false,
        }
    }

    /// A whole period: what happens while it is open, late, and at its settlement.
    fn live(&mut self) -> Result<()> {
        let (start, end) = (self.facts.period.start, self.facts.period.end);
        self.happen(start..end)?;
        // Its draft is settled, or that is missed.
        if self.chance(2) {
            self.facts.now = end + TimeDelta::minutes(self.rng.random_range(0..90));
            self.run(&Target::Draft { invoice_id: "in_1".to_owned(), closes: end })?;
        }
        // A subscription that has ended is settled at once.
        if self.chance(8) {
            self.facts.settle_time = self.facts.now.max(end);
        }
        self.happen(end..end + SETTLEMENT_GRACE)?;
        self.settle()
    }

    fn happen(&mut self, time: Range<DateTime<Utc>>) -> Result<()> {
        let steps = self.rng.random_range(0..=STEPS);
        let late = time.start >= self.facts.period.end;
        for step in 0..steps {
            let share =
                TimeDelta::seconds((time.end - time.start).num_seconds() * step as i64 / STEPS as i64);
            self.facts.now = (time.start + share).max(self.facts.now);
            match self.rng.random_range(0..12) {
                0..=4 => self.call(),
                5 => self.adjust(),
                6 if !late => self.change(),
                7 => self.next_terms = terms(&mut self.rng),
                8 => self.retry(),
                _ => self.run(&Target::Upcoming)?,
            }
        }
        Ok(())
    }

    fn call(&mut self) {
        let most = [1, 10, 5_000, 300_000][self.rng.random_range(0..4)];
        let units = self.rng.random_range(1..=most);
        self.count(units);
    }

    fn adjust(&mut self) {
        let units = self.rng.random_range(-20_000..20_000i64);
        if self.facts.open_units + units >= 0 {
            self.count(units);
        }
    }

    fn count(&mut self, units: i64) {
        self.facts.open_units += units;
        // A period whose count changes after all is open again.
        self.settled = false;
        if let Some(open) = self.segments.last_mut() {
            open.end += units;
        }
    }

    /// A change of plan that applies now: the open segment is closed as the service does.
    fn change(&mut self) {
        let new = terms(&mut self.rng);
        let facts = &mut self.facts;
        facts.closed.push(ClosedSegment {
            plan: facts.plan,
            plan_version: facts.plan_version,
            units: facts.open_units,
            overage_units: facts.open_overage(),
            terms: facts.terms,
            granted: facts.granted,
        });
        (facts.open_units, facts.terms, self.next_terms) = (0, new, new);
        let count = self.segments.last().map_or(0, |open| open.end);
        self.segments.push(Segment { terms: new, start: count, end: count });
    }

    /// What was refused is attempted again.
    fn retry(&mut self) {
        self.facts.parked = None;
    }

    /// A run, which may be cut off anywhere.
    fn run(&mut self, target: &Target) -> Result<()> {
        if self.settled {
            return Ok(());
        }
        if let Some(intent) = self.pending.take() {
            self.send(intent)?;
            if self.is_stuck() {
                return Ok(());
            }
        }
        self.facts.summary = Some(self.facts.overage()?);
        let intent = match self.facts.next()? {
            Next::Nothing => return self.check(),
            Next::Settle => {
                self.settled = true;
                return self.check();
            }
            Next::Park(reason) => anyhow::bail!("parked: {reason:?}"),
            Next::Charge { customer, difference } => Intent::new(&self.facts, customer, difference, target),
        };
        let basis = intent.basis.clone().context("a basis")?;
        ensure!(basis.amount()? == intent.difference.amount, "{basis:?} is not {:?}", intent.difference);
        ensure!(matches!(basis, Basis::Difference(_)), "{basis:?}");
        self.enter(&intent, true);
        // Killed before it is sent.
        if self.chance(10) {
            self.pending = Some(intent);
            return Ok(());
        }
        self.send(intent)?;
        if self.is_stuck() { Ok(()) } else { self.check() }
    }

    fn is_stuck(&self) -> bool {
        self.pending.is_some() || self.facts.parked.is_some()
    }

    /// The ledger counts a charge from when it is written down; one that failed, no more.
    fn enter(&mut self, intent: &Intent, counts: bool) {
        let ledger = &mut self.facts.ledger;
        if counts {
            ledger.billed.0 += intent.difference.amount.0;
            ledger.units = intent.difference.units_to;
            ledger.last_sequence = intent.sequence;
        } else {
            ledger.billed.0 -= intent.difference.amount.0;
            ledger.units = intent.difference.units_from;
        }
    }

    fn send(&mut self, intent: Intent) -> Result<()> {
        let amount = intent.difference.amount.0;
        match self.rng.random_range(0..10) {
            // The effect, and no answer: in doubt.
            0 => {
                self.stripe.items.entry(intent.key()).or_insert(amount);
                self.pending = Some(intent);
                Ok(())
            }
            // Neither.
            1 => {
                self.pending = Some(intent);
                Ok(())
            }
            // Too old for its key: looked for at Stripe, and replaced where it is not there.
            2 if self.stripe.items.contains_key(&intent.key()) => {
                self.succeeded.push(amount);
                Ok(())
            }
            2 => self.send(intent.next_attempt()),
            // Its draft was finalised meanwhile.
            3 if intent.item.invoice.is_some() && !self.stripe.items.contains_key(&intent.key()) => {
                let next = intent.elsewhere().context("another place")?;
                ensure!(next.item.invoice.is_none() && next.difference == intent.difference);
                self.send(next)
            }
            // Refused for good.
            4 if !self.stripe.items.contains_key(&intent.key()) => {
                self.enter(&intent, false);
                self.facts.parked = Some(ParkReason::Refused("CARD_DECLINED".to_owned()));
                Ok(())
            }
            _ => {
                self.stripe.items.entry(intent.key()).or_insert(amount);
                self.succeeded.push(amount);
                Ok(())
            }
        }
    }

    /// The daily sweep after the grace, until the period is settled.
    fn settle(&mut self) -> Result<()> {
        self.facts.now = (self.facts.settle_time).max(self.facts.now);
        for _ in 0..1_000 {
            if self.settled {
                let owed = self.owed().rounded(self.facts.currency);
                ensure!(self.at_stripe() == owed, "settled at {} and owed {owed}", self.at_stripe());
                return Ok(());
            }
            self.retry();
            self.run(&Target::Upcoming)?;
        }
        anyhow::bail!("never settled")
    }

    /// After a run that is not in doubt.
    fn check(&self) -> Result<()> {
        ensure!(self.at_stripe() == self.succeeded.iter().sum::<i64>(), "the ledger is not what Stripe has");
        ensure!(self.at_stripe() == self.facts.ledger.billed.0, "billed is not what Stripe has");
        if self.is_stuck() {
            return Ok(());
        }
        let owed = self.owed();
        let off = owed.numerator - i128::from(self.at_stripe()) * owed.denominator;
        let cent = i128::from(cent(self.facts.currency)) * owed.denominator;
        // A period that is open is rounded down, one that takes no more usage half a cent up.
        let range = if self.facts.is_settling() { -cent / 2..cent / 2 } else { 0..cent };
        // Prices are exact to a micro.
        let slack = owed.denominator * self.segments.len() as i128;
        ensure!(
            off >= range.start - slack && off < range.end + slack,
            "{} at Stripe, owed {owed:?}",
            self.at_stripe()
        );
        Ok(())
    }

    fn at_stripe(&self) -> i64 {
        self.stripe.items.values().sum()
    }

    /// Σ over the segments of overage × price, as it is defined.
    fn owed(&self) -> Fraction {
        let mut units: Vec<(UnitPrice, i64)> = Vec::new();
        for Segment { terms, start, end } in &self.segments {
            let (Some(included), Price::Is(price)) = (terms.included, terms.price) else { continue };
            units.push((price, (end - included.max(*start)).max(0)));
        }
        let denominator = units.iter().fold(1, |all, (price, _)| lcm(all, i128::from(price.per_units)));
        let part = |(price, units): &(UnitPrice, i64)| {
            i128::from(*units) * i128::from(price.micros) * (denominator / i128::from(price.per_units))
        };
        let by_price = group(&units);
        // Of each price, whole micros.
        let micros: i64 = by_price.iter().map(|(price, units)| floor_cost(*price, *units)).sum();
        Fraction { numerator: units.iter().map(part).sum(), denominator, micros }
    }

    fn chance(&mut self, of: u32) -> bool {
        self.rng.random_ratio(1, of)
    }
}

/// Micros, exact, and as whole micros of each price.
#[derive(Debug, Clone, Copy)]
struct Fraction {
    numerator: i128,
    denominator: i128,
    micros: i64,
}

impl Fraction {
    fn rounded(self, currency: Currency) -> i64 {
        let cent = cent(currency);
        (self.micros + cent / 2).div_euclid(cent) * cent
    }
}

/// Micros of the smallest amount that Stripe charges.
fn cent(currency: Currency) -> i64 {
    match currency.as_str() {
        "JPY" => 1_000_000,
        _ => 10_000,
    }
}

fn group(units: &[(UnitPrice, i64)]) -> Vec<(UnitPrice, i64)> {
    let mut grouped: Vec<(UnitPrice, i64)> = Vec::new();
    for (price, units) in units {
        match grouped.iter_mut().find(|(known, _)| known == price) {
            Some((_, sum)) => *sum += units,
            None => grouped.push((*price, *units)),
        }
    }
    grouped
}

fn floor_cost(price: UnitPrice, units: i64) -> i64 {
    (i128::from(units) * i128::from(price.micros) / i128::from(price.per_units)) as i64
}

fn lcm(a: i128, b: i128) -> i128 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

fn terms(rng: &mut StdRng) -> Terms {
    let included = match rng.random_range(0..6) {
        0 => None,
        1 => Some(0),
        _ => Some(rng.random_range(0..200_000)),
    };
    let micros = [0, 1, 7, 333, 1_000, 1_500][rng.random_range(0..6)];
    let per_units = [1, 1, 1, 3, 1_000][rng.random_range(0..5)];
    Terms { included, price: Price::Is(UnitPrice { micros, per_units }) }
}

fn facts(currency: Currency, terms: Terms, period: Period) -> Facts {
    Facts {
        eco_id: "eco_a".to_owned(),
        period,
        plan: Plan::Pro,
        plan_version: 1,
        granted: true,
        currency,
        terms,
        closed: Vec::new(),
        open_units: 0,
        last_event_time: None,
        summary: None,
        parked: None,
        stripe_customer_id: Some("cus_1".to_owned()),
        stripe_subscription_id: Some("sub_1".to_owned()),
        ledger: Ledger::default(),
        settle_time: period.end + SETTLEMENT_GRACE,
        rounded: false,
        now: period.start,
    }
}

/// Three periods, one after the other.
fn history(seed: u64) -> Result<()> {
    let mut world = World::new(seed);
    for _ in 0..3 {
        world.live()?;
        let Facts { currency, period, .. } = world.facts;
        let next = Period { start: period.end, end: period.end + TimeDelta::days(30) };
        let terms = world.next_terms;
        world = World {
            facts: facts(currency, terms, next),
            segments: vec![Segment { terms, start: 0, end: 0 }],
            pending: None,
            succeeded: Vec::new(),
            stripe: Stripe::default(),
            settled: false,
            ..world
        };
    }
    Ok(())
}

fn number(name: &str) -> Result<Option<u64>> {
    env::var(name).ok().map(|text| text.parse().with_context(|| name.to_owned())).transpose()
}

#[test]
fn whatever_happens_what_is_charged_is_what_is_owed() -> Result<()> {
    if let Some(seed) = number("LEDGER_SEED")? {
        return history(seed);
    }
    let histories = number("LEDGER_HISTORIES")?.unwrap_or(HISTORIES);
    let threads = thread::available_parallelism()?.get() as u64;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    (worker..histories)
                        .step_by(threads as usize)
                        .try_for_each(|seed| history(seed).with_context(|| format!("seed {seed}")))
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    })
}
