//! What is held and known of an account.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
};

use chrono::{DateTime, Utc};
use nexus_core::period::Period;
use tokio::sync::{Mutex, Notify};

use super::{
    COME_BACK, Decision, RECALL_WAIT, Verdict,
    claim::Ask,
    held::{Drained, Held, Reservation},
};
use crate::{
    clock::{BootTime, LaggingClock},
    domain::{
        lease::wanted,
        quota::{Standing, Terms},
    },
};

/// What a check comes to.
#[derive(Debug)]
pub(super) enum Step {
    /// Admitted, or refused; with a reservation where that was asked for.
    Decided(Decision, Option<Reservation>),
    /// Too little is left: refused, unless somebody gives units back.
    Short {
        refusal: Decision,
        /// Whether it is worth waiting.
        recallable: bool,
    },
}

impl Step {
    /// The caller has it: what was reserved for it stays admitted.
    pub(super) fn keep(self) -> Self {
        match self {
            Self::Decided(decision, Some(reservation)) => {
                reservation.keep();
                Self::Decided(decision, None)
            }
            other => other,
        }
    }
}

/// What claims of an account share.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// One claim at a time asks the database.
    pub(super) turn: Mutex<Pace>,
    /// Units that wait for their turn.
    waiting: AtomicI64,
    /// Units taken from memory since the last grant: they were not spent.
    pub(super) taken_out: AtomicI64,
    /// Units taken from memory that the database does not have back yet.
    pub(super) returning: AtomicI64,
    /// Leases that are held no longer, of which the database does not have back yet what was left.
    pub(super) unsettled: AtomicUsize,
    /// Leases that clients of this replica hold.
    pub(super) lent: AtomicUsize,
    /// Told when units may have come back.
    pub(super) returned: Notify,
    /// A claim ahead of need is under way.
    pub(super) refilling: AtomicBool,
    /// Counts the account's changes.
    pub(super) epoch: AtomicU64,
    /// When units were last called back, in nanoseconds of [`BootTime`].
    pub(super) recalled: AtomicU64,
}

/// Units that wait for their turn, until this is dropped.
pub(super) struct Waiting<'a>(&'a Account, i64);

impl Account {
    pub(super) fn wait(&self, units: i64) -> Waiting<'_> {
        self.waiting.fetch_add(units, Ordering::AcqRel);
        Waiting(self, units)
    }

    /// All units that wait.
    pub(super) fn waiting(&self) -> i64 {
        self.waiting.load(Ordering::Acquire)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(self.1, Ordering::AcqRel);
    }
}

/// How quickly units are spent.
#[derive(Debug)]
pub(super) struct Pace {
    /// Of the last grant.
    since: BootTime,
    /// Units that were there then, those handed out at once included.
    had: i64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: BootTime::START, had: 0 }
    }
}

impl Pace {
    /// Units to want, where so many of those that were there were not spent.
    pub(super) fn wanted(&self, unused: i64, limited: bool) -> i64 {
        wanted(self.had - unused, BootTime::now().since(self.since), limited)
    }

    pub(super) fn begin(&mut self, had: i64) {
        *self = Self { since: BootTime::now(), had };
    }
}

/// What the database last said of an account.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) terms: Terms,
    pub(super) period: Period,
    /// The period is not over before: by the database's clock when it answered, and by one that nobody sets from
    /// then on. How long the question and the answer took is not known; this is as if the answer took it all.
    pub(super) ends: BootTime,
    /// The period is over by then: as if the question took it all.
    pub(super) resets: BootTime,
    pub(super) consumed: i64,
}

impl View {
    /// Of an answer to a question that was asked at `asked`.
    pub(super) fn of(standing: &Standing, asked: BootTime) -> Self {
        let left = (standing.period.end - standing.now).to_std().unwrap_or_default();
        Self {
            terms: standing.terms,
            period: standing.period,
            ends: asked.after(left),
            resets: BootTime::now().after(left),
            consumed: standing.consumption.consumed(),
        }
    }

    /// By what is known while the database is away; what was consumed is not.
    pub(super) fn known(terms: Terms, period: Period, now: DateTime<Utc>) -> Self {
        let ends = BootTime::now().after((period.end - now).to_std().unwrap_or_default());
        Self { terms, period, ends, resets: ends, consumed: 0 }
    }

    fn decision(&self, units: i64, verdict: Verdict, unspent: i64) -> Decision {
        let consumed = (self.consumed - unspent).max(0);
        let View { terms, period, resets, .. } = *self;
        Decision { units, verdict, consumed, terms, period, resets }
    }
}

/// That too little was left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short {
    /// Units that were left.
    pub(super) left: i64,
    pub(super) at: BootTime,
    /// Others may give some back.
    pub(super) outstanding: bool,
    /// They were asked to, and may do so within [`RECALL_WAIT`].
    pub(super) recallable: bool,
}

/// Sweeps without a check after which units go back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    /// Where units are limited, so that others may be short of them.
    pub(super) limited: u32,
    /// Where nobody is refused.
    pub(super) unlimited: u32,
}

/// An account at this replica. All leases that are held are of the view's period.
#[derive(Debug, Default)]
pub(super) struct Slot {
    held: Vec<Arc<Held>>,
    pub(super) view: Option<View>,
    pub(super) short: Option<Short>,
    /// With no more units left a refill is due; negative: never.
    low: i64,
    pub(super) account: Arc<Account>,
    /// Units left at the last sweep.
    seen: i64,
    /// Sweeps since anything was spent.
    pub(super) idle: u32,
}

impl Slot {
    /// Nothing is held yet.
    pub(super) fn of(account: Arc<Account>) -> Self {
        Self { account, ..Self::default() }
    }

    /// Spends units of a lease, or refuses by what is remembered from then on. This is the way of nearly all
    /// checks: nothing here allocates, and no clock is read.
    pub(super) fn decide(
        &self,
        ask: Ask,
        clock: &LaggingClock,
        heard: impl FnOnce() -> bool,
    ) -> Option<Step> {
        let view = self.view.as_ref().filter(|view| clock.is_before(view.ends))?;
        if let Some(held) = self.held.iter().find(|held| held.units.spend(ask.units)) {
            let verdict = Verdict::Admitted(held.lease_id);
            let decision = view.decision(ask.units, verdict, self.unspent());
            return Some(Step::Decided(decision, ask.reserved.then(|| Reservation::new(held, ask.units))));
        }
        // What is held in parts, each too few, would do if it were given back: that is not remembered.
        let short = self.short.filter(|short| ask.units > short.left && short.at >= ask.since);
        let short = short.filter(|_| self.unspent() == 0)?;
        self.refusal(ask.units, view, &short, BootTime::now(), heard)
    }

    fn refusal(
        &self,
        units: i64,
        view: &View,
        short: &Short,
        now: BootTime,
        heard: impl FnOnce() -> bool,
    ) -> Option<Step> {
        let age = now.since(short.at);
        let refused = |after| view.decision(units, Verdict::Refused(after), self.unspent());
        if short.recallable && age < RECALL_WAIT {
            return Some(Step::Short { refusal: refused(COME_BACK), recallable: true });
        }
        // While a change would be heard, nothing but a change ends a refusal with nothing outstanding.
        if age < COME_BACK || !short.outstanding && heard() {
            let after = if short.outstanding { COME_BACK } else { view.resets.since(now) };
            return Some(Step::Decided(refused(after), None));
        }
        None
    }

    /// Notes that too little is left, and refuses.
    pub(super) fn refuse(&mut self, units: i64, view: View, short: Short) -> Step {
        self.renew(view);
        self.short = Some(short);
        self.low = -1;
        let after = if short.outstanding { COME_BACK } else { view.resets.since(BootTime::now()) };
        let refusal = view.decision(units, Verdict::Refused(after), self.unspent());
        Step::Short { refusal, recallable: short.recallable }
    }

    /// Whether units of this replica's own may come back: what is reserved, and what is being settled.
    pub(super) fn is_outstanding(&self) -> bool {
        self.account.unsettled.load(Ordering::Acquire) > 0
            || self.held.iter().any(|held| Arc::strong_count(held) > 1)
    }

    /// Nothing is left to be claimed ahead of need.
    pub(super) fn stop_refills(&mut self, view: View) -> Step {
        self.low = -1;
        Step::Decided(view.decision(0, Verdict::Refused(COME_BACK), self.unspent()), None)
    }

    /// Takes in a lease of so many units, of which `own` are spent at once.
    pub(super) fn grant(&mut self, view: View, held: Arc<Held>, granted: i64, own: i64) -> Decision {
        self.renew(view);
        self.short = None;
        let lease_id = held.lease_id;
        self.held.push(held);
        let left = self.unspent();
        // Of a few units none are held back: each is claimed when it is needed.
        self.low = if granted - own >= 4 { left / 2 } else { -1 };
        view.decision(own, Verdict::Admitted(lease_id), left)
    }

    fn renew(&mut self, view: View) {
        debug_assert!(
            self.held.is_empty() || self.is_of(view.period),
            "leases of another period were returned"
        );
        self.view = Some(view);
        self.idle = 0;
    }

    /// Units of a client's came back.
    pub(super) fn take_back(&mut self, units: i64) {
        if let Some(view) = &mut self.view {
            view.consumed -= units;
        }
    }

    /// Admits without a lease, where the plan refuses nobody. With the figures of the last answer, if it was about the
    /// same period.
    pub(super) fn open(&self, units: i64, known: View) -> Option<Decision> {
        let last = self.view.filter(|view| view.period == known.period);
        let view = last.unwrap_or(known);
        view.terms.hard_limit().is_none().then(|| view.decision(units, Verdict::Open, self.unspent()))
    }

    /// Whether a claim ahead of need is due and none is under way.
    pub(super) fn runs_low(&self) -> bool {
        self.low >= 0 && self.unspent() <= self.low && !self.account.refilling.load(Ordering::Relaxed)
    }

    pub(super) fn unspent(&self) -> i64 {
        self.held.iter().map(|held| held.units.left()).sum()
    }

    /// The same, with what is on its way back.
    pub(super) fn unspent_or_returning(&self) -> i64 {
        self.unspent() + self.account.returning.load(Ordering::Acquire)
    }

    pub(super) fn is_of(&self, period: Period) -> bool {
        self.view.is_some_and(|view| view.period == period)
    }

    /// Takes everything out of memory, to be given back.
    pub(super) fn drain(&mut self) -> Vec<Drained> {
        let drained: Vec<Drained> = self.held.drain(..).map(Drained::of).collect();
        self.low = -1;
        if let Some(view) = &mut self.view {
            view.consumed -= drained.iter().map(|lease| lease.unspent).sum::<i64>();
        }
        drained
    }

    /// Takes out what is spent, and everything once the period is over or nobody has spent any for so many
    /// sweeps.
    pub(super) fn sweep(&mut self, now: BootTime, idle: &Idle) -> Vec<Drained> {
        let limited = self.view.is_some_and(|view| view.terms.hard_limit().is_some());
        let idle_for = if limited { idle.limited } else { idle.unlimited };
        let left = self.unspent();
        self.idle = if left == self.seen { self.idle.saturating_add(1) } else { 0 };
        self.seen = left;
        if self.idle >= idle_for || self.view.is_none_or(|view| now >= view.ends) {
            return self.drain();
        }
        self.held.extract_if(.., |held| held.units.left() == 0).map(Drained::of).collect()
    }

    /// Forgets all that a change may have made untrue.
    pub(super) fn forget(&mut self) -> Vec<Drained> {
        let drained = self.drain();
        self.view = None;
        self.short = None;
        drained
    }

    /// Whether nothing is lost with it, and nobody has been here for so many sweeps.
    pub(super) fn is_forgettable(&self, idle_for: u32) -> bool {
        self.held.is_empty() && self.idle >= idle_for && Arc::strong_count(&self.account) == 1
    }
}
