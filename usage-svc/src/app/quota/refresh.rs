//! Asks again about accounts that are known, where a change of them may have been missed, or where the plans changed: what
//! was known of them decides in the next outage.

use std::time::Duration;

use nexus_core::id::EcoId;
use nexus_kit::db;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Holder;
use crate::{domain::judge::Facts, store};

/// Accounts that are asked about at once.
const AT_ONCE: usize = 500;
/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest time that an answer may take.
const BOUND: Duration = Duration::from_secs(8);

impl Holder {
    /// Asks whenever there are doubts, until `stop`.
    pub(super) async fn refresh_until(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.doubts.notified()).await.is_some() {
            while let Some(Err(error)) = stop.run_until_cancelled(self.refresh()).await {
                tracing::debug!(%error, "what is known of accounts could not be asked for again");
                stop.run_until_cancelled(sleep(AGAIN)).await;
            }
        }
    }

    async fn refresh(&self) -> sqlx::Result<()> {
        for accounts in self.known.doubtful().chunks(AT_ONCE) {
            self.ask_again(accounts).await?;
        }
        Ok(())
    }

    async fn ask_again(&self, accounts: &[EcoId]) -> sqlx::Result<()> {
        let before = self.known.before();
        // Of some it is known by now.
        let ids = self.known.wanting(before, accounts);
        let Some(now) = self.known.now().filter(|_| !ids.is_empty()) else { return Ok(()) };
        let mut connection = db::acquire(&self.pool).await?;
        let read = timeout(BOUND, async {
            let accounts = store::accounts::for_recording(&mut connection, &ids).await?;
            let terms = store::accounts::terms(&mut connection, &ids).await?;
            Ok(Facts { now, accounts, terms, ..Facts::default() })
        });
        let facts = db::in_time(read.await, connection)?;
        self.known.learn(before, &facts);
        Ok(())
    }
}
