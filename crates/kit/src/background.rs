//! What a server does beside its calls. It cannot do without any of it: when one of these tasks panics the server stops
//! and fails, so that whoever runs it starts it anew, rather than going on without.

use std::sync::{Arc, OnceLock};

use tokio::{
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::serve::ServeError;

/// The tasks of one server. Clones are the same.
#[derive(Clone)]
pub struct Background {
    shutdown: CancellationToken,
    failed: Arc<OnceLock<&'static str>>,
}

/// A task; dropped, it is cut off, so that nothing of a server outlives it.
pub struct Task {
    name: &'static str,
    watched: JoinHandle<()>,
    cut: AbortHandle,
}

impl Background {
    /// Of the server that stops at `shutdown`.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { shutdown, failed: Arc::default() }
    }

    /// Runs it.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Task {
        self.watch(name, tokio::spawn(work))
    }

    /// The same for a task that runs already.
    pub fn watch(&self, name: &'static str, task: JoinHandle<()>) -> Task {
        let (cut, this) = (task.abort_handle(), self.clone());
        let watched = tokio::spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                tracing::error!(task = name, "panicked: the server stops");
                this.failed.get_or_init(|| name);
                this.shutdown.cancel();
            }
        });
        Task { name, watched, cut }
    }

    /// Fails with the first that panicked.
    pub fn outcome(&self) -> Result<(), ServeError> {
        self.failed.get().map_or(Ok(()), |name| Err(ServeError::Background(name)))
    }
}

impl Task {
    /// Waits for its end.
    pub async fn ended(mut self) {
        self.wait().await;
    }

    /// Waits for its end until then, and cuts it off. What it leaves undone no caller was told to be done.
    pub async fn end_by(mut self, until: Instant) {
        if timeout_at(until, self.wait()).await.is_err() {
            tracing::warn!(task = self.name, "is not done in time and is cut off");
        }
    }

    async fn wait(&mut self) {
        if let Err(error) = (&mut self.watched).await {
            tracing::debug!(task = self.name, %error, "the runtime ends");
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.cut.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_stops_its_server_which_fails_and_one_that_ends_does_not() {
        let shutdown = CancellationToken::new();
        let background = Background::new(shutdown.clone());
        let good = background.spawn("good", async {});
        good.ended().await;
        assert!(!shutdown.is_cancelled() && background.outcome().is_ok());
        let _bad = background.spawn("bad", async { panic!("of the test") });
        shutdown.cancelled().await;
        assert_eq!(background.outcome().expect_err("it failed").to_string(), "the task \"bad\" panicked");
    }

    #[tokio::test]
    async fn a_task_ends_with_its_server() {
        struct Tells(CancellationToken);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let ended = CancellationToken::new();
        let background = Background::new(CancellationToken::new());
        let tells = Tells(ended.clone());
        let task = background.spawn("one", async move {
            let _tells = tells;
            std::future::pending::<()>().await;
        });
        drop(task);
        ended.cancelled().await;
        assert!(background.outcome().is_ok());
    }
}
