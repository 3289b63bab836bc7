//! Keeps the summary `eco_usage_records` in step with the counters, and `eco_account_figures` with the accounts.
//! billing-svc alone writes them.
//!
//! A flush of usage-svc notes in a queue which periods it changed, in the transaction that changed them.
//! Here entries are taken off and the periods computed anew by a later statement of one transaction: what
//! the entries stand for is committed by then, and what comes later has entries of its own. The same goes for accounts
//! that are new or on other terms; those whose period ends are known by their rows.

use std::{iter, time::Duration};

use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::{
    app::tell_thresholds,
    domain::period::PeriodKey,
    error::Error,
    store::{account_figures, changes, facts, lease, mrr, records},
};

const EVERY: Duration = Duration::from_millis(500);
/// Entries a transaction takes, and, where there are more, the next one after it: of many entries more are of the same
/// account, which is computed once for all of them.
const BATCHES: [i64; 5] = [2_000, 4_000, 8_000, 16_000, 32_000];

/// Accounts whose movements of the MRR a transaction writes.
const MOVED_AT_ONCE: i32 = 1_000;

/// Refreshes twice a second until `shutdown`; of several replicas, one at a time does.
pub async fn refresher(pool: PgPool, shutdown: CancellationToken) {
    let mut failed = false;
    while !shutdown.is_cancelled() {
        match refresh_all(&pool).await {
            Ok(()) => failed = false,
            Err(error) if failed => tracing::debug!(%error, "the summary could still not be refreshed"),
            Err(error) => {
                tracing::warn!(%error, "the summary could not be refreshed");
                failed = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn refresh_all(pool: &PgPool) -> Result<(), Error> {
    refresh_if_free(pool).await?;
    note_moved(pool).await
}

/// By whichever replica comes first: each account's row is one's.
async fn note_moved(pool: &PgPool) -> Result<(), Error> {
    loop {
        let mut transaction = db::begin(pool).await?;
        let noted = mrr::note_due(&mut transaction, MOVED_AT_ONCE).await?;
        transaction.commit().await?;
        if noted < MOVED_AT_ONCE {
            return Ok(());
        }
    }
}

async fn refresh_if_free(pool: &PgPool) -> Result<(), Error> {
    for batch in batches() {
        let mut transaction = db::begin(pool).await?;
        if !lease::try_refresh(&mut transaction).await? {
            return Ok(());
        }
        let more = refresh_batch(&mut transaction, batch).await?;
        let more = compute_figures(&mut transaction, batch).await? || more;
        account_figures::add_deltas(&mut transaction).await?;
        transaction.commit().await?;
        if !more {
            return Ok(());
        }
    }
    Ok(())
}

/// One after the other, the last one as often as there is more.
fn batches() -> impl Iterator<Item = i64> {
    BATCHES.into_iter().chain(iter::repeat(BATCHES[BATCHES.len() - 1]))
}

/// Empties the queue: afterwards the summary has everything that was committed before the call.
pub async fn drain(pool: &PgPool) -> Result<(), Error> {
    for batch in batches() {
        let mut transaction = db::begin(pool).await?;
        // Waits for a refresher that has taken entries and not yet committed what they stand for.
        lease::refresh(&mut transaction).await?;
        let more = refresh_batch(&mut transaction, batch).await?;
        transaction.commit().await?;
        if !more {
            break;
        }
    }
    Ok(())
}

async fn refresh_batch(db: &mut PgConnection, batch: i64) -> Result<bool, Error> {
    let (taken, periods) = changes::take(db, batch).await?;
    refresh(db, &periods).await?;
    Ok(taken as i64 == batch)
}

/// After the summaries, which the figures show.
async fn compute_figures(db: &mut PgConnection, batch: i64) -> Result<bool, Error> {
    let (taken, accounts) = account_figures::take(db, batch).await?;
    if !accounts.is_empty() {
        account_figures::compute(db, &accounts).await?;
    }
    Ok(taken == batch)
}

/// Computes the summary of these periods anew, and tells accounts which thresholds they have reached.
pub async fn refresh(db: &mut PgConnection, periods: &[PeriodKey]) -> Result<(), Error> {
    if periods.is_empty() {
        return Ok(());
    }
    let facts = facts::read(db, periods).await?;
    records::upsert(db, &facts).await?;
    tell_thresholds::run(db, &facts).await
}
