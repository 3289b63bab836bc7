//! Where billing-svc is struck. Its lines to PostgreSQL and to Stripe tell of every point they pass: before a request
//! is passed on, and before its answer is. At the point that was aimed at, what is on its way is held until it is done.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::atlas::Atlas;

/// What billing-svc waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    /// A transaction is committed.
    Commit,
    /// A statement within a transaction; the first one begins it.
    InTransaction(Arc<str>),
    /// A statement that is a transaction of its own.
    Own(Arc<str>),
    /// A request to Stripe: method and path, without ids.
    Stripe(Arc<str>),
}

/// Whether the request is on its way, or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Side {
    Before,
    After,
}

/// A point in the work of billing-svc.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) place: Place,
    pub(super) side: Side,
}

impl Point {
    /// As which kind it is counted.
    pub(super) fn kind(&self) -> String {
        let side = match self.side {
            Side::Before => "before",
            Side::After => "after",
        };
        match &self.place {
            Place::Commit => format!("{side} a commit"),
            Place::InTransaction(_) => format!("{side} a statement in a transaction"),
            Place::Own(_) => format!("{side} a statement of its own"),
            Place::Stripe(request) => format!("{side} {request}"),
        }
    }
}

/// Which points are counted until it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Any,
    /// Those that were not passed before since it was aimed: what is rare is hit as often as what is frequent.
    New,
    Commit,
    Stripe,
    /// Requests to Stripe about invoices: those of settlements.
    Invoices,
    /// What is done about webhooks and about subscriptions that have ended.
    Events,
}

/// Whether this is done about an event, or about a subscription that has ended; to look for some is not.
fn is_of_events(place: &Place) -> bool {
    match place {
        Place::Stripe(request) => {
            request.contains("/v1/subscriptions/{id}") || &**request == "GET /v1/invoices/{id}"
        }
        Place::InTransaction(text) | Place::Own(text) => {
            let table = text.contains("eco_stripe_events") || text.contains("eco_ended_subscriptions");
            table && (text.starts_with("update") || text.starts_with("insert"))
        }
        Place::Commit => false,
    }
}

/// What happens to what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Forward,
    /// It is lost with its connection.
    Lost,
    /// Its connection is lost; it arrives, but later.
    Late,
}

/// A strike whose point has come. What is held waits for the verdict.
pub(super) struct Due {
    pub(super) replica: usize,
    pub(super) point: Point,
    pub(super) verdict: oneshot::Sender<Verdict>,
}

struct Aimed {
    aim: Aim,
    skip: u32,
    passed: HashSet<Point>,
}

/// The strike to come, if any; told of every point that is passed.
pub(super) struct Strikes {
    aimed: Mutex<Option<Aimed>>,
    due: mpsc::UnboundedSender<Due>,
    atlas: Arc<Atlas>,
    late: Mutex<Vec<Bytes>>,
}

impl fmt::Debug for Strikes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Strikes").finish_non_exhaustive()
    }
}

impl Strikes {
    /// None yet, and where those to come are told.
    pub(super) fn new(atlas: Arc<Atlas>) -> (Arc<Self>, mpsc::UnboundedReceiver<Due>) {
        let (due, dues) = mpsc::unbounded_channel();
        (Arc::new(Self { aimed: Mutex::default(), due, atlas, late: Mutex::default() }), dues)
    }

    /// Strikes at one of the points that are counted, after so many of them.
    pub(super) fn aim(&self, aim: Aim, skip: u32) {
        *lock(&self.aimed) = Some(Aimed { aim, skip, passed: HashSet::new() });
    }

    /// Strikes no more; whether one was still to come.
    pub(super) fn clear(&self) -> bool {
        lock(&self.aimed).take().is_some()
    }

    /// A replica passes a point: returns once what is on its way may go on, or is to be lost.
    pub(super) async fn pass(&self, replica: usize, point: Point) -> Verdict {
        self.atlas.passed(&point);
        if !self.strikes(&point) {
            return Verdict::Forward;
        }
        self.atlas.struck(&point);
        let (verdict, decided) = oneshot::channel();
        if self.due.send(Due { replica, point, verdict }).is_err() {
            return Verdict::Forward;
        }
        decided.await.unwrap_or(Verdict::Forward)
    }

    fn strikes(&self, point: &Point) -> bool {
        let mut held = lock(&self.aimed);
        let Some(aimed) = held.as_mut() else { return false };
        let counts = match aimed.aim {
            Aim::Any => true,
            Aim::New => aimed.passed.insert(point.clone()),
            Aim::Commit => point.place == Place::Commit,
            Aim::Stripe => matches!(point.place, Place::Stripe(_)),
            Aim::Invoices => {
                matches!(&point.place, Place::Stripe(request) if request.contains("/v1/invoices"))
            }
            Aim::Events => is_of_events(&point.place),
        };
        if !counts {
            return false;
        }
        if aimed.skip > 0 {
            aimed.skip -= 1;
            return false;
        }
        *held = None;
        true
    }

    /// Keeps a request that arrives later.
    pub(super) fn keep(&self, request: Bytes) {
        lock(&self.late).push(request);
    }

    /// Whether a request was kept.
    pub(super) fn has_late(&self) -> bool {
        !lock(&self.late).is_empty()
    }

    /// The requests that were kept.
    pub(super) fn take_late(&self) -> Vec<Bytes> {
        std::mem::take(&mut *lock(&self.late))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(text: &str, side: Side) -> Point {
        Point { place: Place::Own(text.into()), side }
    }

    #[test]
    fn a_strike_counts_the_points_that_it_aims_at() {
        let (strikes, _dues) = Strikes::new(Arc::default());
        let (a, b) = (point("select a", Side::Before), point("select b", Side::After));
        assert!(!strikes.strikes(&a), "nothing is aimed at");
        strikes.aim(Aim::New, 1);
        assert!(!strikes.strikes(&a) && !strikes.strikes(&a), "it was passed before");
        assert!(strikes.strikes(&b));
        assert!(!strikes.strikes(&b), "once");
        strikes.aim(Aim::Commit, 0);
        assert!(!strikes.strikes(&a));
        assert!(strikes.strikes(&Point { place: Place::Commit, side: Side::After }));
        strikes.aim(Aim::Events, 0);
        assert!(!strikes.strikes(&point("select 1 from eco_stripe_events", Side::Before)), "a look");
        assert!(strikes.strikes(&point("update eco_stripe_events set due_time = $1", Side::Before)));
        strikes.aim(Aim::Any, 2);
        assert!(!strikes.strikes(&a) && !strikes.strikes(&a));
        assert!(strikes.clear() && !strikes.clear());
    }
}
