//! Writes calls that lacked a lock once it is had. It is waited for in turn with rebuilds and changes of plan, by the
//! first statement of a transaction, which holds nothing meanwhile; this goes on as a flush, with the lock that it has.

use std::mem;

use nexus_kit::db;
use sqlx::Connection;
use tokio::time::timeout;
use tracing::Instrument;

use super::{
    flush,
    locked::{Flushed, Lock, Wait},
    record_usage::{Submission, answer},
    writer::{Lacking, Writer, of},
};
use crate::domain::event::Outcome;

impl Writer {
    /// Waits for a lock; writes the calls that `take` gives then, and answers them, but those that lack another: they
    /// come back.
    pub(super) async fn write_in_turn(
        &mut self,
        lock: Lock,
        take: impl Fn() -> Vec<Submission>,
    ) -> Vec<Lacking> {
        let (mut group, mut locked) = (Vec::new(), Vec::new());
        match self.count_in_turn(lock, &take, &mut group, &mut locked).await {
            Ok(outcomes) => answer(group, Ok(outcomes)),
            Err(error) => {
                tracing::debug!(%error, ?lock, "a lock was not had, or nothing could be written with it");
                // What the matter is, a flush without the lock finds out.
                group.extend(take());
                locked.extend(self.write(group).await);
            }
        }
        locked
    }

    async fn count_in_turn(
        &mut self,
        lock: Lock,
        take: impl Fn() -> Vec<Submission>,
        group: &mut Vec<Submission>,
        locked: &mut Vec<Lacking>,
    ) -> sqlx::Result<Vec<Outcome>> {
        let mut connection = db::acquire(&self.pool).await?;
        let counted = timeout(Wait::InTurn(lock).bound(self.bound), async {
            let mut transaction = connection.begin().await?;
            lock.wait(&mut transaction).await?;
            *group = take();
            while !group.is_empty() {
                let (span, events) = of(group);
                let flushed = flush::count_in_turn(&mut transaction, &mut self.memory, &events);
                match flushed.instrument(span).await? {
                    Flushed::Counted(outcomes) => {
                        transaction.commit().await?;
                        return Ok(outcomes);
                    }
                    Flushed::Locked(what) => {
                        let (waits, free) = what.part(mem::take(group));
                        locked.extend(waits);
                        *group = free;
                    }
                }
            }
            transaction.rollback().await?;
            Ok(Vec::new())
        })
        .await;
        let outcomes = db::in_time(counted, connection)?;
        self.memory.committed();
        if !outcomes.is_empty() {
            self.count(outcomes.len(), Some(outcomes.len()));
        }
        Ok(outcomes)
    }
}
