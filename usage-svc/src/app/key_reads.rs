//! Reads of API keys that are not remembered here. A call with such a key waits for one, and whoever makes keys up needs
//! no account for it. So a statement reads for all who wait, and while it does the next ones gather: however many come,
//! they take one connection, and a key that is good waits for few statements: the one under way, and those for all who came
//! before it.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Keys that one statement reads at most.
const AT_ONCE: usize = 1024;

/// Why a read failed; logged where it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The database is away, or busy with what was to be read.
    #[error("the database is unavailable")]
    Unavailable,
    /// A statement failed: our fault.
    #[error("API keys could not be read")]
    Failed,
}

/// Where calls wait for what is stored under their keys' ids.
#[derive(Debug)]
pub(super) struct Reads<T> {
    waiting: mpsc::Sender<Waiting<T>>,
}

/// A call that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    key_id: String,
    answer: oneshot::Sender<Result<Option<T>, ReadError>>,
}

impl<T: Clone> Reads<T> {
    /// For so many that wait, and what [`serve`] takes.
    pub(super) fn new(room: usize) -> (Self, mpsc::Receiver<Waiting<T>>) {
        let (sender, waiting) = mpsc::channel(room);
        (Self { waiting: sender }, waiting)
    }

    /// What is stored under the id; fails where as many wait as may.
    pub(super) async fn read(&self, key_id: &str) -> Result<Option<T>, Error> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Waiting { key_id: key_id.to_owned(), answer }).map_err(
            |error| match error {
                mpsc::error::TrySendError::Full(_) => Error::TooManyReads,
                mpsc::error::TrySendError::Closed(_) => Error::Stopping,
            },
        )?;
        Ok(answered.await.map_err(|_| Error::Stopping)??)
    }
}

/// Reads for those who wait, until `stop`.
pub(super) async fn serve<T: Clone, F>(
    mut waiting: mpsc::Receiver<Waiting<T>>,
    read: impl Fn(Vec<String>) -> F,
    stop: CancellationToken,
) where
    F: Future<Output = Result<HashMap<String, T>, ReadError>>,
{
    let mut calls = Vec::new();
    while let Some(1..) = stop.run_until_cancelled(waiting.recv_many(&mut calls, AT_ONCE)).await {
        let mut ids: Vec<_> = calls.iter().map(|call| call.key_id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let stored = read(ids).await;
        for Waiting { key_id, answer } in calls.drain(..) {
            let of_this = stored.as_ref().map(|stored| stored.get(&key_id).cloned()).map_err(|error| *error);
            // Who has gone away meanwhile needs none.
            let _taken = answer.send(of_this);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::{FutureExt, future::join_all};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn those_who_gather_during_a_read_are_read_at_once_each_key_once() {
        let (reads, waiting) = Reads::new(4);
        let (statements, go) = (Mutex::new(Vec::new()), Semaphore::new(0));
        let read = async |ids| {
            go.acquire().await.expect("it is open").forget();
            statements.lock().expect("it is whole").push(ids);
            Ok(HashMap::from([("b".to_owned(), 7)]))
        };
        let stop = CancellationToken::new();
        let mut server = Box::pin(serve(waiting, read, stop.clone()));
        let mut first = Box::pin(reads.read("a"));
        assert!((&mut first).now_or_never().is_none() && (&mut server).now_or_never().is_none());
        let mut crowd = Box::pin(join_all(["b", "c", "b", "a"].map(|id| reads.read(id))));
        assert!((&mut crowd).now_or_never().is_none());
        assert!(matches!(reads.read("d").await, Err(Error::TooManyReads)), "as many wait as may");
        go.add_permits(2);
        assert!((&mut server).now_or_never().is_none(), "it waits for more");
        assert!(matches!(first.await, Ok(None)));
        let answers: Vec<_> = crowd.await.into_iter().map(Result::ok).collect();
        assert_eq!(answers, [Some(Some(7)), Some(None), Some(Some(7)), Some(None)]);
        assert_eq!(*statements.lock().expect("it is whole"), [vec!["a"], vec!["a", "b", "c"]]);
        stop.cancel();
        server.await;
        assert!(matches!(reads.read("b").await, Err(Error::Stopping)));
    }

    #[tokio::test]
    async fn a_read_that_fails_fails_for_those_who_waited_for_it() {
        let (reads, waiting) = Reads::<()>::new(4);
        let server = serve(waiting, async |_| Err(ReadError::Unavailable), CancellationToken::new());
        let answers = tokio::select! {
            () = server => unreachable!("nobody stops it"),
            answers = join_all(["a", "b"].map(|id| reads.read(id))) => answers,
        };
        for answer in answers {
            assert!(matches!(answer, Err(Error::Read(ReadError::Unavailable))), "{answer:?}");
        }
    }
}
