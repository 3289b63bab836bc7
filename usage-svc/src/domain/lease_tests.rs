//! Every order of a small case: two holders, a limit of a few units, and whatever may happen to a grant, its
//! answer, a settlement and a holder. A message that is lost is one that never arrives. The ledger here has the rules of `nexus_grant_quota`,
//! `nexus_settle_leases` and `nexus_disown_lease`; that the database keeps them, `tests/it/leases.rs` shows.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use proptest::{prop_assert, proptest};

use super::*;

const LIMIT: i64 = 2;
/// Leases that each holder may ask for.
const LEASES: [usize; 2] = [2, 1];

type LeaseId = (usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LeaseRow {
    granted: i64,
    returned: i64,
    settled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Ledger {
    granted: i64,
    returned: i64,
    leases: BTreeMap<LeaseId, LeaseRow>,
}

impl Ledger {
    fn consumed(&self) -> i64 {
        self.granted - self.returned
    }

    /// A grant that arrives: of its size only the bounds matter here. `None`: its id is taken.
    fn grant(&mut self, id: LeaseId, units: i64) -> Option<i64> {
        let units = units.min(LIMIT - self.consumed());
        if units == 0 || self.leases.contains_key(&id) {
            return None;
        }
        self.granted += units;
        self.leases.insert(id, LeaseRow { granted: units, returned: 0, settled: false });
        Some(units)
    }

    fn settle(&mut self, id: LeaseId, unspent: i64) {
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| !lease.settled) {
            lease.settled = true;
            lease.returned = unspent.min(lease.granted);
            self.returned += lease.returned;
        }
    }

    fn disown(&mut self, id: LeaseId) {
        self.leases.entry(id).or_insert(LeaseRow { granted: 1, returned: 1, settled: true });
        self.settle(id, i64::MAX);
    }

    fn unsettled(&self) -> i64 {
        self.leases.values().filter(|lease| !lease.settled).map(|lease| lease.granted).sum()
    }
}

/// A grant on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    /// To the database.
    Request(LeaseId, i64),
    /// Back: the units, if any.
    Answer(LeaseId, Option<i64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Due {
    Settle(LeaseId, i64),
    Disown(LeaseId),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct HolderState {
    lost: bool,
    asked: usize,
    /// The claim whose answer it waits for.
    claim: Option<LeaseId>,
    held: BTreeMap<LeaseId, i64>,
    due: BTreeSet<Due>,
    spent: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct World {
    ledger: Ledger,
    /// Messages arrive in any order, or not at all.
    network: BTreeSet<Message>,
    holders: [HolderState; LEASES.len()],
}

impl World {
    /// All states that may come next.
    fn next(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            all.push(world);
        };
        for (i, holder) in self.holders.iter().enumerate().filter(|(_, holder)| !holder.lost) {
            for id in holder.held.keys().copied() {
                add(&|w| w.holders[i].spend(id));
            }
            if !holder.held.is_empty() {
                add(&|w| w.holders[i].drain());
            }
            if holder.claim.is_none() && holder.asked < LEASES[i] {
                for units in 1..=LIMIT {
                    add(&|w| w.ask(i, units));
                }
            }
            if holder.claim.is_some() {
                add(&|w| w.holders[i].give_up());
            }
            for due in holder.due.iter().copied() {
                add(&|w| w.settle(i, due)); // and it hears of it
                add(&|w| w.apply(due)); // and the answer is lost: it is tried again
            }
            add(&|w| w.holders[i].lose());
        }
        for message in self.network.iter().copied() {
            add(&|w| w.deliver(message));
        }
        all
    }

    fn ask(&mut self, i: usize, units: i64) {
        let holder = &mut self.holders[i];
        let id = (i, holder.asked);
        holder.asked += 1;
        holder.claim = Some(id);
        self.network.insert(Message::Request(id, units));
    }

    fn deliver(&mut self, message: Message) {
        self.network.remove(&message);
        match message {
            Message::Request(id, units) => {
                let granted = self.ledger.grant(id, units);
                self.network.insert(Message::Answer(id, granted));
            }
            Message::Answer(id, granted) => {
                let holder = &mut self.holders[id.0];
                // An answer that nobody waits for any more is not heard.
                if holder.claim == Some(id) {
                    holder.claim = None;
                    holder.held.extend(granted.map(|units| (id, units)));
                }
            }
        }
    }

    fn apply(&mut self, due: Due) {
        match due {
            Due::Settle(id, unspent) => self.ledger.settle(id, unspent),
            Due::Disown(id) => self.ledger.disown(id),
        }
    }

    fn settle(&mut self, i: usize, due: Due) {
        self.holders[i].due.remove(&due);
        self.apply(due);
    }

    fn spent(&self) -> i64 {
        self.holders.iter().map(|holder| holder.spent).sum()
    }

    /// Every holder that is not lost stops in good order.
    fn stop(&mut self) {
        for i in 0..self.holders.len() {
            self.holders[i].give_up();
            self.holders[i].drain();
            for due in std::mem::take(&mut self.holders[i].due) {
                self.apply(due);
            }
        }
    }

    /// What is on its way arrives after all.
    fn deliver_all(&mut self) {
        while let Some(message) = self.network.first().copied() {
            self.deliver(message);
        }
    }

    fn check(&self) {
        assert!(self.spent() <= self.ledger.consumed() && self.ledger.consumed() <= LIMIT, "{self:?}");
        let mut end = self.clone();
        end.stop();
        end.check_end(self);
        end.deliver_all();
        end.check_end(self);
    }

    fn check_end(&self, from: &Self) {
        let forfeited = self.ledger.consumed() - self.spent();
        let unsettled = self.ledger.unsettled();
        if self.holders.iter().any(|holder| holder.lost) {
            // Lost are units of leases that nobody settled, and no others.
            assert!((0..=unsettled).contains(&forfeited), "{from:?} ends as {self:?}");
        } else {
            assert_eq!((forfeited, unsettled), (0, 0), "{from:?} ends as {self:?}");
        }
    }
}

impl HolderState {
    fn spend(&mut self, id: LeaseId) {
        let units = Units::new(self.held[&id]);
        self.spent += i64::from(units.spend(1));
        self.held.insert(id, units.left());
    }

    /// Waits no longer for the answer to its claim.
    fn give_up(&mut self) {
        self.due.extend(self.claim.take().map(Due::Disown));
    }

    fn drain(&mut self) {
        for (id, left) in std::mem::take(&mut self.held) {
            self.due.insert(Due::Settle(id, Units::new(left).take()));
        }
    }

    /// Its memory is gone; what it has admitted is not.
    fn lose(&mut self) {
        *self = Self { lost: true, asked: self.asked, spent: self.spent, ..Self::default() };
    }
}

#[test]
fn no_order_of_events_admits_more_than_the_limit_or_loses_units_of_holders_that_settle() {
    let mut seen = HashSet::from([World::default()]);
    let mut open = vec![World::default()];
    let mut used_up = 0;
    while let Some(world) = open.pop() {
        world.check();
        used_up += u64::from(world.spent() == LIMIT);
        for next in world.next() {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    assert!(used_up > 0 && seen.len() > 1_000, "{} states, {used_up} used up", seen.len());
}

#[test]
fn a_unit_is_spent_or_taken_and_never_both() {
    const SPENDERS: usize = 4;
    for round in 0..200 {
        let units = Arc::new(Units::new(1000));
        let start = Arc::new(Barrier::new(SPENDERS + 1));
        let spenders: Vec<_> = (0..SPENDERS)
            .map(|i| {
                let (units, start) = (units.clone(), start.clone());
                let each = 1 + i64::try_from((i + round) % 3).unwrap_or_default();
                thread::spawn(move || {
                    start.wait();
                    (0..400).filter(|_| units.spend(each)).count() as i64 * each
                })
            })
            .collect();
        start.wait();
        let taken = units.take();
        let spent: i64 = spenders.into_iter().map(|spender| spender.join().expect("it does not panic")).sum();
        assert_eq!((spent + taken, units.left(), units.spend(1)), (1000, 0, false));
    }
}

#[test]
fn a_lease_lasts_half_a_second_where_units_are_limited_and_longer_elsewhere() {
    let second = Duration::from_secs(1);
    assert_eq!(wanted(100, second, true), 50);
    assert_eq!(wanted(10, second, false), 100);
    assert_eq!(wanted(10_000, second, false), 20_000);
    assert_eq!(wanted(1, Duration::from_secs(3600), true), 0);
    // Over a moment no pace is taken.
    assert_eq!(wanted(100, Duration::ZERO, true), 1000);
    assert_eq!(wanted(-5, second, true), 0);
    assert_eq!(wanted(i64::MAX, second, true), 1_000_000_000);
}

proptest! {
    #[test]
    fn units_end_at_zero_and_only_whole_requests_are_spent(start in 0_i64..100, asks in proptest::collection::vec(1_i64..20, 0..40)) {
        let units = Units::new(start);
        let spent: i64 = asks.iter().filter(|ask| units.spend(**ask)).sum();
        prop_assert!(spent <= start && units.left() == start - spent);
    }
}
