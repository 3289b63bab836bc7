//! What is to go wrong, and when. Nothing here looks at a clock: a fault is due after so many commits, seen in
//! the answers of PostgreSQL on their way to the replicas. What is on its way there, an answer or the request to
//! commit, is held until the fault is done, so that "between the commit and its acknowledgement" is a place that
//! can be hit.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};

/// Something that goes wrong, or right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The transaction is committed, and its replica never hears of it.
    SwallowCommit,
    /// The connection breaks within a transaction, which PostgreSQL rolls back.
    CutTransaction,
    /// The connection breaks with the request to commit, which PostgreSQL never gets.
    LoseCommit,
    /// kill -9 of the replica whose answer is held; it is started again.
    KillReplica,
    /// SIGTERM to that replica; it ends in order and is started again.
    RestartReplica,
    /// SIGSTOP to that replica, until so many commits later.
    PauseReplica {
        /// Commits until SIGCONT.
        commits: u64,
    },
    /// Nothing passes between that replica and the database, until so many commits later.
    Partition {
        /// Commits until it is healed.
        commits: u64,
    },
    /// kill -9 of the postmaster; it is started again.
    KillDatabase,
    /// kill -9 of a client; another goes on from its journal.
    KillClient,
    /// End of a replica's pause and partition.
    Recover(usize),
    /// Nothing more goes wrong.
    End,
}

/// A place in the work of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// A statement within a transaction was done, or a COPY waits for its rows.
    InTransaction,
    /// A transaction is about to be committed.
    Committing,
    /// A transaction was committed.
    Committed,
    /// Something else was answered: among others a statement that is a transaction of its own.
    Outside,
}

/// Where a fault that is due strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// At whichever point, so many after it is due.
    Any {
        /// Points to pass over.
        skip: u32,
    },
    /// Before PostgreSQL is asked to commit.
    Committing,
    /// Between a commit and its answer.
    Committed,
    /// Within a transaction, so many points after it is due.
    InTransaction {
        /// Points to pass over.
        skip: u32,
    },
}

/// A fault to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    /// It is due once so many transactions were committed.
    pub(crate) commits: u64,
    /// Where it strikes.
    pub(crate) at: At,
    /// What happens.
    pub(crate) fault: Fault,
}

/// What happens to what was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    Forward,
    /// It is lost with its connection.
    Sever,
}

/// A fault whose time has come. What is at hand waits for the verdict.
pub(crate) struct Due {
    /// What is to happen.
    pub(crate) fault: Fault,
    /// Replica on whose line it is held.
    pub(crate) replica: usize,
    /// Lets it go, or not.
    pub(crate) verdict: oneshot::Sender<Verdict>,
}

/// The faults to come; told of every point that is passed.
pub(crate) struct Script {
    state: Mutex<State>,
    due: mpsc::UnboundedSender<Due>,
}

struct State {
    commits: u64,
    /// A fault is being carried out. None strikes or comes nearer meanwhile: what it waits for must not be held.
    busy: bool,
    planned: Vec<Planned>,
}

impl Script {
    /// The script, and where its faults are told.
    pub(crate) fn new(planned: Vec<Planned>) -> (Arc<Self>, mpsc::UnboundedReceiver<Due>) {
        let (due, dues) = mpsc::unbounded_channel();
        let mut state = State { commits: 0, busy: false, planned };
        state.sort();
        (Arc::new(Self { state: Mutex::new(state), due }), dues)
    }

    /// Adds a fault, due after so many more commits.
    pub(crate) fn plan(&self, after: u64, at: At, fault: Fault) {
        let mut state = self.state();
        let commits = state.commits + after;
        state.planned.push(Planned { commits, at, fault });
        state.sort();
    }

    /// The fault that was due is done; the next may strike.
    pub(crate) fn done(&self) {
        self.state().busy = false;
    }

    /// Takes back what did not come due; returns how many faults that were.
    pub(crate) fn clear(&self) -> usize {
        self.state().planned.drain(..).count()
    }

    /// A replica passes a point: returns once what is on its way may go on, or is to be lost.
    pub(crate) async fn pass(&self, point: Point, replica: usize) -> Verdict {
        let Some(fault) = self.state().strike(point) else { return Verdict::Forward };
        let (verdict, decided) = oneshot::channel();
        if self.due.send(Due { fault, replica, verdict }).is_err() {
            return Verdict::Forward;
        }
        decided.await.unwrap_or(Verdict::Forward)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this")
    }
}

impl State {
    fn sort(&mut self) {
        self.planned.sort_by_key(|planned| planned.commits);
    }

    /// The fault that strikes here.
    fn strike(&mut self, point: Point) -> Option<Fault> {
        if self.busy {
            return None;
        }
        self.commits += u64::from(point == Point::Committed);
        let mut due = self.planned.iter_mut().take_while(|planned| planned.commits <= self.commits);
        let here = due.position(|planned| match (&mut planned.at, point) {
            (At::Committed, Point::Committed) | (At::Committing, Point::Committing) => true,
            (At::InTransaction { skip }, Point::InTransaction) | (At::Any { skip }, _) => {
                let here = *skip == 0;
                *skip = skip.saturating_sub(1);
                here
            }
            _ => false,
        })?;
        // What was to come before the end comes before it.
        if here > 0 && self.planned[here].fault == Fault::End {
            return None;
        }
        self.busy = true;
        Some(self.planned.remove(here).fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(commits: u64, at: At, fault: Fault) -> Planned {
        Planned { commits, at, fault }
    }

    #[test]
    fn a_fault_strikes_at_its_place_once_it_is_due_and_none_while_another_is_done() {
        let (script, _dues) = Script::new(vec![
            planned(2, At::InTransaction { skip: 1 }, Fault::CutTransaction),
            planned(1, At::Committed, Fault::SwallowCommit),
        ]);
        let strike = |point| script.state().strike(point);
        assert_eq!(strike(Point::InTransaction), None, "not due yet");
        assert_eq!(strike(Point::Committed), Some(Fault::SwallowCommit));
        assert_eq!(strike(Point::Committed), None, "one is being done, and this is not counted");
        script.done();
        assert_eq!(strike(Point::InTransaction), None, "not due yet");
        assert_eq!(strike(Point::Committed), None, "another place");
        assert_eq!(strike(Point::InTransaction), None, "one is passed over");
        assert_eq!(strike(Point::Committed), None, "another place");
        assert_eq!(strike(Point::InTransaction), Some(Fault::CutTransaction));
        script.done();
        script.plan(1, At::Any { skip: 1 }, Fault::End);
        assert_eq!(strike(Point::InTransaction), None);
        assert_eq!(strike(Point::Committed), None, "one is passed over");
        assert_eq!(strike(Point::Outside), Some(Fault::End));
        assert_eq!(script.clear(), 0);
    }

    #[tokio::test]
    async fn an_answer_is_held_until_its_fault_is_done() {
        let (script, mut dues) = Script::new(vec![planned(1, At::Committed, Fault::KillReplica)]);
        let (verdict, due) = tokio::join!(script.pass(Point::Committed, 2), async {
            let due = dues.recv().await.expect("a fault is due");
            let told = (due.fault, due.replica);
            due.verdict.send(Verdict::Sever).expect("the answer waits");
            told
        });
        assert_eq!((verdict, due), (Verdict::Sever, (Fault::KillReplica, 2)));
        assert_eq!(script.pass(Point::Committed, 0).await, Verdict::Forward);
    }
}
