//! Calls with API keys whose secrets were not seen here before. Each is a read, and whoever makes keys up needs no account
//! for it: a few are read at once, the others wait in their order, and beyond so many are turned away, so that such calls
//! take neither the connections nor the places of those whose keys are known.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// They have this part of the connections.
const PART: u32 = 4;
/// That wait at once: a fifth of the calls that a gateway has under way on its connection.
const MAX_WAITING: usize = 200;

/// Their turns.
#[derive(Debug)]
pub(super) struct Strangers {
    turns: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Strangers {
    /// Of the connections that this pool has.
    pub(super) fn of(pool: &PgPool) -> Self {
        Self::new((pool.options().get_max_connections() / PART).max(1), MAX_WAITING)
    }

    fn new(turns: u32, waiting: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(turns as usize)), waiting: Semaphore::new(waiting) }
    }

    /// Waits for a turn, which lasts until this is dropped; fails where as many wait as may.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(turn) = self.turns.clone().try_acquire_owned() {
            return Ok(turn);
        }
        let _waits = self.waiting.try_acquire().map_err(|_| Error::TooManyStrangers)?;
        self.turns.clone().acquire_owned().await.map_err(|_| Error::Stopping)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_few_have_a_turn_a_few_wait_and_the_others_are_turned_away() -> Result<(), Error> {
        let strangers = Strangers::new(1, 1);
        let first = strangers.turn().await?;
        let mut second = Box::pin(strangers.turn());
        assert!((&mut second).now_or_never().is_none(), "it waits");
        assert!(matches!(strangers.turn().await, Err(Error::TooManyStrangers)));
        drop(first);
        drop(second.await?);
        drop(strangers.turn().await?);
        Ok(())
    }
}
