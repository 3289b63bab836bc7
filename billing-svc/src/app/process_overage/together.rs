//! What single charges ask of the ledger at about the same time is asked by one statement: while one is under way,
//! the next questions gather. Each is answered when the statement is committed, as if it had been asked alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    domain::charge::Readiness,
    error::Error,
    store::charges::{self, Made},
};

/// Questions a statement has at most.
const MOST: usize = 256;

/// The statements of a run.
#[derive(Debug, Default)]
pub struct Together {
    ready: Gathered<ReadAgain>,
    succeeded: Gathered<Succeed>,
}

impl Together {
    /// Reads an attempt again, right before it is sent.
    pub(super) async fn ready(
        &self,
        pool: &PgPool,
        charge_id: Uuid,
        attempt: i32,
        run_id: Option<Uuid>,
    ) -> Result<Readiness, Error> {
        self.ready.ask(pool, (run_id, (charge_id, attempt))).await
    }

    /// Records that Stripe has an item; false: the attempt was no longer in doubt.
    pub(super) async fn succeed(&self, pool: &PgPool, made: Made) -> Result<bool, Error> {
        self.succeeded.ask(pool, made).await
    }
}

/// A statement about many.
trait Statement {
    type Question: Send;
    type Answer: Send;

    /// Asks; an answer for each question.
    fn carry_out(
        db: &mut PgConnection,
        questions: &[Self::Question],
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Answer>>> + Send;
}

#[derive(Debug)]
struct ReadAgain;

impl Statement for ReadAgain {
    type Question = (Option<Uuid>, (Uuid, i32));
    type Answer = Readiness;

    async fn carry_out(db: &mut PgConnection, questions: &[Self::Question]) -> sqlx::Result<Vec<Readiness>> {
        let (runs, attempts): (Vec<Option<Uuid>>, Vec<(Uuid, i32)>) = questions.iter().copied().unzip();
        match runs.first() {
            Some(run_id) => charges::ready(db, &attempts, *run_id).await,
            None => Ok(Vec::new()),
        }
    }
}

#[derive(Debug)]
struct Succeed;

impl Statement for Succeed {
    type Question = Made;
    type Answer = bool;

    async fn carry_out(db: &mut PgConnection, questions: &[Made]) -> sqlx::Result<Vec<bool>> {
        charges::succeed_all(db, questions).await
    }
}

type Answer<S> = Result<<S as Statement>::Answer, Error>;

struct Waiting<S: Statement> {
    question: S::Question,
    answer: oneshot::Sender<Answer<S>>,
}

/// Questions that wait for the next statement.
struct Gathered<S: Statement> {
    waiting: Mutex<Vec<Waiting<S>>>,
    /// Had by whoever carries a statement out, for all that wait.
    turn: tokio::sync::Mutex<()>,
}

impl<S: Statement> Default for Gathered<S> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<S: Statement> std::fmt::Debug for Gathered<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").field("waiting", &self.waiting().len()).finish_non_exhaustive()
    }
}

impl<S: Statement> Gathered<S> {
    async fn ask(&self, pool: &PgPool, question: S::Question) -> Answer<S> {
        let (answer, mut mine) = oneshot::channel();
        self.waiting().push(Waiting { question, answer });
        let _turn = tokio::select! {
            biased;
            answer = &mut mine => return answer.unwrap_or(Err(Error::Stopping)),
            turn = self.turn.lock() => turn,
        };
        // Answered by whoever had the turn before, or still among those that wait, perhaps far behind.
        loop {
            match mine.try_recv() {
                Ok(answer) => return answer,
                Err(oneshot::error::TryRecvError::Closed) => return Err(Error::Stopping),
                Err(oneshot::error::TryRecvError::Empty) => self.answer_some(pool).await,
            }
        }
    }

    async fn answer_some(&self, pool: &PgPool) {
        let some: Vec<Waiting<S>> = {
            let mut waiting = self.waiting();
            let count = waiting.len().min(MOST);
            waiting.drain(..count).collect()
        };
        let (questions, senders): (Vec<_>, Vec<_>) =
            some.into_iter().map(|waiting| (waiting.question, waiting.answer)).unzip();
        match carry_out::<S>(pool, &questions).await {
            Ok(answers) => {
                for (sender, answer) in senders.into_iter().zip(answers) {
                    // Nobody waits any more where a run was cut off.
                    drop(sender.send(Ok(answer)));
                }
            }
            // One of them may be at fault: each by itself.
            Err(error) => {
                tracing::debug!(%error, questions = questions.len(), "asking one by one");
                for (sender, question) in senders.into_iter().zip(questions) {
                    let alone = carry_out::<S>(pool, std::slice::from_ref(&question)).await;
                    let answer = alone.and_then(|mut all| all.pop().ok_or(Error::Stopping));
                    drop(sender.send(answer));
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting<S>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn carry_out<S: Statement>(pool: &PgPool, questions: &[S::Question]) -> Result<Vec<S::Answer>, Error> {
    let mut connection = db::acquire(pool).await?;
    Ok(S::carry_out(&mut connection, questions).await?)
}
