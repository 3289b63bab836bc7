//! A lease in memory, and units of it that may come back.

use std::sync::Arc;

use tokio::sync::Notify;
use uuid::Uuid;

use crate::domain::lease::Units;

/// A lease that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease_id: Uuid,
    pub(super) units: Units,
    /// Told when a reservation of it ended.
    pub(super) given_up: Arc<Notify>,
}

/// A lease that is held no longer. Nobody can spend of it any more; what is reserved of it may come back.
#[derive(Debug)]
pub(super) struct Drained {
    held: Arc<Held>,
    /// Units taken from it.
    pub(super) unspent: i64,
    /// Whether any were left, or reserved.
    pub(super) may_return: bool,
}

impl Drained {
    /// Of a lease that nobody reaches any more.
    pub(super) fn of(held: Arc<Held>) -> Self {
        let may_return = Arc::strong_count(&held) > 1 || held.units.left() > 0;
        let unspent = held.units.take();
        Self { held, unspent, may_return }
    }

    pub(super) fn lease_id(&self) -> Uuid {
        self.held.lease_id
    }

    /// Takes what came back of reservations; whether there are none any more, so that this is all there is.
    pub(super) fn is_final(&mut self) -> bool {
        // None can be added. Whoever gives one up has put its units back before, and this sees that.
        let alone = Arc::get_mut(&mut self.held).is_some();
        self.unspent += self.held.units.take();
        alone
    }
}

/// Admitted units of a call that is not answered yet. Dropped, as when the caller goes away meanwhile, they are given
/// back, as if they had not been admitted.
#[derive(Debug)]
pub struct Reservation {
    /// `None` once it is being dropped.
    held: Option<Arc<Held>>,
    units: i64,
}

impl Reservation {
    /// Of units that were spent of the lease.
    pub(super) fn new(held: &Arc<Held>, units: i64) -> Self {
        Self { held: Some(held.clone()), units }
    }

    /// The call is answered: the units stay admitted.
    pub fn keep(mut self) {
        self.units = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let given_up = held.given_up.clone();
            held.units.put_back(self.units);
            drop(held);
            given_up.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    /// Some give back, some do not, while the lease is drained.
    #[test]
    fn what_a_drained_lease_gives_back_is_all_that_was_not_used() {
        for _ in 0..200 {
            let lease_id = Uuid::from_u128(1);
            let held = Arc::new(Held { lease_id, units: Units::new(1000), given_up: Arc::default() });
            let reservations: Vec<_> = (0..40)
                .map(|_| {
                    assert!(held.units.spend(3));
                    Reservation::new(&held, 3)
                })
                .collect();
            let start = Arc::new(Barrier::new(2));
            let others = thread::spawn({
                let start = start.clone();
                move || {
                    start.wait();
                    for (i, reservation) in reservations.into_iter().enumerate() {
                        if i % 4 == 0 { reservation.keep() } else { drop(reservation) }
                    }
                }
            });
            start.wait();
            let mut drained = Drained::of(held);
            while !drained.is_final() {
                thread::yield_now();
            }
            assert_eq!(drained.unspent, 1000 - 10 * 3);
            others.join().expect("it does not panic");
        }
    }
}
