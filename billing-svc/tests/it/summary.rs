//! The queue that keeps the summary in step with the counters.

use anyhow::{Result, ensure};
use nexus_billing::store::changes;
use nexus_kit::db::{self, Role};
use nexus_testkit::db::TestDb;

/// A plan that was made while the queue was empty, and analysed so, must do when it is long: joined with itself, it would
/// be read whole for each entry, for longer than a statement may take.
#[tokio::test]
async fn a_long_queue_is_taken_by_a_statement_that_was_planned_when_it_was_empty() -> Result<()> {
    const ENTRIES: i64 = 300_000;
    const AT_ONCE: i64 = 32_000;
    let db = TestDb::new().await?;
    sqlx::query("vacuum analyze eco_usage_changes").execute(&db.pool).await?;
    let pool = db::pool(&db.args(), Role::Billing)?;
    let mut connection = db::acquire(&pool).await?;
    // After five of its own PostgreSQL keeps one plan.
    for _ in 0..10 {
        ensure!(changes::take(&mut connection, AT_ONCE).await?.0 == 0);
    }
    let fill = "insert into eco_usage_changes (eco_id, period_start)
                select 'eco_' || n % 1000, '2026-11-01Z' from generate_series(1, $1) n";
    sqlx::query(fill).bind(ENTRIES).execute(&db.pool).await?;
    let mut left = ENTRIES;
    while left > 0 {
        let (taken, periods) = changes::take(&mut connection, AT_ONCE).await?;
        ensure!(taken as i64 == left.min(AT_ONCE) && periods.len() == 1_000, "{taken} of {left}");
        left -= taken as i64;
    }
    Ok(())
}
