//! What is held of an account.

use std::{
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use nexus_lease::{clock::BootTime, units::Units};
use tokio::sync::Notify;

use crate::{guard::Admitted, headers::Quota};

/// An account is busy with so many checks within [`WINDOW`].
const BUSY: u64 = 4;
const WINDOW: Duration = Duration::from_secs(1);

/// An account that is checked.
#[derive(Debug)]
pub(super) struct Account {
    held: RwLock<Held>,
    /// Units asked for since ever, whoever admitted them.
    demand: AtomicI64,
    /// The same at the start of a window, when that was, in nanoseconds of [`BootTime`], and checks in it.
    window_demand: AtomicI64,
    window: AtomicU64,
    window_checks: AtomicU64,
    last_seen: AtomicU64,
    /// There is a task that has units held.
    has_task: AtomicBool,
    /// None is started before, in nanoseconds of [`BootTime`].
    rests_until: AtomicU64,
    /// More units are wanted.
    wanting: AtomicBool,
    /// Told when they are.
    pub(super) wanted: Notify,
}

/// Leases, and what is known of their period.
#[derive(Debug, Default)]
struct Held {
    leases: Vec<Lease>,
    view: Option<View>,
    /// With no more units left, more are wanted.
    low: i64,
}

#[derive(Debug)]
struct Lease {
    id: String,
    granted: i64,
    units: Units,
}

/// What the server last said of the account.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// Limit and period; what remains is told for each call.
    pub(super) quota: Quota,
    /// Units consumed, all that were granted here included.
    pub(super) consumed: i64,
    /// The period is not over before.
    pub(super) ends: BootTime,
    /// What is held may be used until then.
    pub(super) valid: BootTime,
}

/// A lease that is held no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TakenOut {
    pub(super) lease_id: String,
    pub(super) used: i64,
    pub(super) unused: i64,
}

impl Account {
    pub(super) fn new(now: BootTime) -> Self {
        Self {
            held: RwLock::default(),
            demand: AtomicI64::new(0),
            window_demand: AtomicI64::new(0),
            window: AtomicU64::new(now.nanos()),
            window_checks: AtomicU64::new(0),
            last_seen: AtomicU64::new(now.nanos()),
            has_task: AtomicBool::new(false),
            rests_until: AtomicU64::new(0),
            wanting: AtomicBool::new(false),
            wanted: Notify::new(),
        }
    }

    /// Uses units of one lease: by a single exchange, beside any number of others.
    pub(super) fn admit(&self, units: i64, now: BootTime) -> Option<Admitted> {
        self.demand.fetch_add(units, Ordering::Relaxed);
        self.last_seen.store(now.nanos(), Ordering::Relaxed);
        let held = self.read();
        let view = held.view.as_ref().filter(|view| now < view.ends && now < view.valid);
        let lease =
            view.and_then(|view| Some((view, held.leases.iter().find(|lease| lease.units.spend(units))?)));
        let left = held.left();
        if lease.is_none() || left <= held.low {
            self.want();
        }
        let (view, lease) = lease?;
        let remaining = match view.quota.limit {
            limit if limit < 0 => -1,
            limit => (limit - view.consumed + left).clamp(0, limit),
        };
        Some(Admitted { admission: lease.id.clone(), quota: Quota { remaining, ..view.quota } })
    }

    /// Notes a check that the server has to decide; whether they are so many that units should be held.
    pub(super) fn is_busy(&self, now: BootTime) -> bool {
        if self.has_task() || now.nanos() < self.rests_until.load(Ordering::Relaxed) {
            return false;
        }
        let since = BootTime::at_nanos(self.window.load(Ordering::Relaxed));
        if now.since(since) <= WINDOW {
            return self.window_checks.fetch_add(1, Ordering::Relaxed) + 1 >= BUSY;
        }
        self.window.store(now.nanos(), Ordering::Relaxed);
        self.window_demand.store(self.demand() - 1, Ordering::Relaxed);
        self.window_checks.store(1, Ordering::Relaxed);
        false
    }

    pub(super) fn has_task(&self) -> bool {
        self.has_task.load(Ordering::Acquire)
    }

    /// Whether the caller is to start the task.
    pub(super) fn take_task(&self) -> bool {
        !self.has_task.swap(true, Ordering::AcqRel)
    }

    /// The task has ended; none is started before.
    pub(super) fn end_task(&self, rests_until: BootTime) {
        self.rests_until.store(rests_until.nanos(), Ordering::Relaxed);
        self.wanting.store(false, Ordering::Relaxed);
        self.has_task.store(false, Ordering::Release);
    }

    pub(super) fn last_seen(&self) -> BootTime {
        BootTime::at_nanos(self.last_seen.load(Ordering::Relaxed))
    }

    /// Units asked for since ever.
    pub(super) fn demand(&self) -> i64 {
        self.demand.load(Ordering::Relaxed)
    }

    /// Since when, at least, it is busy, and the units asked for by then.
    pub(super) fn busy_since(&self) -> (BootTime, i64) {
        let since = BootTime::at_nanos(self.window.load(Ordering::Relaxed));
        (since, self.window_demand.load(Ordering::Relaxed))
    }

    fn want(&self) {
        if !self.wanting.swap(true, Ordering::AcqRel) {
            self.wanted.notify_one();
        }
    }

    pub(super) fn is_wanting(&self) -> bool {
        self.wanting.load(Ordering::Acquire)
    }

    /// The end of the period, of what is held.
    pub(super) fn ends(&self) -> Option<BootTime> {
        let held = self.read();
        held.view.filter(|_| !held.leases.is_empty()).map(|view| view.ends)
    }

    /// Until when what is held may be used.
    pub(super) fn valid_until(&self) -> Option<BootTime> {
        self.read().view.map(|view| view.valid)
    }

    pub(super) fn is_limited(&self) -> bool {
        self.read().view.is_none_or(|view| view.quota.limit >= 0)
    }

    /// Notes what the server says. What is held of another period is taken out.
    pub(super) fn renew(&self, view: View) -> Vec<TakenOut> {
        let mut held = self.write();
        let other = held.view.is_some_and(|known| known.quota.period_start != view.quota.period_start);
        let out = if other { held.take_out() } else { Vec::new() };
        held.view = Some(view);
        out
    }

    /// Takes in a lease, and takes out those that are used up.
    pub(super) fn take_in(&self, id: String, granted: i64) -> Vec<TakenOut> {
        let mut held = self.write();
        let out = held.leases.extract_if(.., |lease| lease.units.left() == 0).map(Lease::take_out).collect();
        held.leases.push(Lease { id, granted, units: Units::new(granted) });
        // A few units are not held back: more are wanted when they are used.
        held.low = if granted >= 4 { held.left() / 2 } else { 0 };
        self.wanting.store(false, Ordering::Release);
        out
    }

    /// Takes everything out. What was used by now is used; nothing is from here on.
    pub(super) fn take_out(&self) -> Vec<TakenOut> {
        self.write().take_out()
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn left(&self) -> i64 {
        self.leases.iter().map(|lease| lease.units.left()).sum()
    }

    fn take_out(&mut self) -> Vec<TakenOut> {
        let out: Vec<_> = self.leases.drain(..).map(Lease::take_out).collect();
        if let Some(view) = &mut self.view {
            view.consumed -= out.iter().map(|lease| lease.unused).sum::<i64>();
        }
        self.low = 0;
        out
    }
}

impl Lease {
    fn take_out(self) -> TakenOut {
        let unused = self.units.take();
        TakenOut { lease_id: self.id, used: self.granted - unused, unused }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use chrono::{DateTime, TimeDelta};

    use super::*;

    const NOW: BootTime = BootTime::at_nanos(1_000_000_000_000);

    fn view(limit: i64, consumed: i64) -> View {
        let quota = Quota {
            policy: "monthly",
            limit,
            remaining: 0,
            period_start: DateTime::UNIX_EPOCH,
            period_end: DateTime::UNIX_EPOCH + TimeDelta::days(30),
        };
        View { quota, consumed, ends: NOW.after(WINDOW * 10), valid: NOW.after(WINDOW * 5) }
    }

    fn holding(limit: i64, granted: i64) -> Account {
        let account = Account::new(NOW);
        account.renew(view(limit, granted));
        account.take_in("lease".to_owned(), granted);
        account
    }

    #[test]
    fn what_remains_is_the_limit_less_what_is_consumed_with_ones_own_unused_units() {
        let account = holding(100, 10);
        let remaining = |units| account.admit(units, NOW).map(|admitted| admitted.quota.remaining);
        assert_eq!((remaining(1), remaining(3), remaining(7)), (Some(99), Some(96), None));
        assert_eq!(remaining(6), Some(90));
        let unlimited = holding(-1, 10);
        assert_eq!(unlimited.admit(1, NOW).map(|admitted| admitted.quota.remaining), Some(-1));
    }

    #[test]
    fn nothing_is_admitted_beyond_the_period_or_unheard_for_too_long() {
        for (later, admits) in [(4, true), (5, false), (11, false)] {
            let account = holding(100, 10);
            assert_eq!(account.admit(1, NOW.after(WINDOW * later)).is_some(), admits, "{later} s");
        }
    }

    #[test]
    fn a_lease_of_another_period_is_taken_out() {
        let account = holding(100, 10);
        account.admit(4, NOW);
        assert_eq!(account.renew(view(100, 0)), [], "the same");
        let mut next = view(100, 0);
        next.quota.period_start = next.quota.period_end;
        let out = TakenOut { lease_id: "lease".to_owned(), used: 4, unused: 6 };
        assert_eq!(account.renew(next), [out]);
        assert!(account.admit(1, NOW).is_none());
    }

    #[test]
    fn more_is_wanted_ahead_of_need_and_said_once() {
        let account = holding(-1, 10);
        for _ in 0..4 {
            account.admit(1, NOW);
            assert!(!account.is_wanting());
        }
        account.admit(1, NOW);
        assert!(account.is_wanting());
        account.take_in("next".to_owned(), 20);
        assert!(!account.is_wanting());
    }

    #[test]
    fn a_few_checks_are_not_busy() {
        let account = Account::new(NOW);
        let busy = |at: BootTime| {
            account.admit(1, at);
            account.is_busy(at)
        };
        let slow: Vec<bool> = (0..10).map(|n| busy(NOW.after(WINDOW / 2 * n))).collect();
        assert_eq!(slow, [false; 10]);
        let later = NOW.after(WINDOW * 60);
        assert_eq!([busy(later), busy(later), busy(later), busy(later)], [false, false, false, true]);
    }

    #[test]
    fn a_unit_is_used_or_given_back_and_never_both() {
        for _ in 0..200 {
            let account = Arc::new(holding(-1, 1_000));
            let users: Vec<_> = (0..3)
                .map(|_| {
                    let account = account.clone();
                    thread::spawn(move || (0..500).filter(|_| account.admit(1, NOW).is_some()).count())
                })
                .collect();
            let out = account.take_out();
            let used: usize = users.into_iter().map(|user| user.join().expect("it does not panic")).sum();
            let (told, back) = (out[0].used, out[0].unused);
            assert_eq!((told, told + back), (i64::try_from(used).expect("a few"), 1_000));
        }
    }
}
