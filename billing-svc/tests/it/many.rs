//! Runs over more accounts than a page has: each is charged once, whoever is killed, and the figures are those of a
//! run that nothing befell.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nexus_billing::{
    app::process_overage::{Answer, DryRun, Engine, Request, Snapshot, dry_run},
    domain::run::{AccountError, RunStatus},
    payments::pace::Pace,
};
use nexus_core::money::Micros;
use nexus_kit::db::{self, Role};
use nexus_testkit::db::TestDb;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    memory::{Fault, Memory},
    support::until,
};

const ACCOUNTS: i32 = 2_345;
/// Those whose number this divides have no customer at Stripe.
const MISSING: i32 = 100;
const FAILED: i32 = ACCOUNTS / MISSING;
const TEN_CENTS: i64 = 100_000;
/// Nothing of a killed service is left in the database: what it had sent is committed or gone, and so is its lease.
const NO_SESSION: &str = "select not exists (select from pg_stat_activity
    where datname = current_database() and application_name = 'nexus billing')";

struct Crowd {
    db: TestDb,
    memory: Arc<Memory>,
}

impl Crowd {
    /// Accounts that owe ten cents each.
    async fn new() -> Result<Self> {
        let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
        let insert = "insert into eco_identities (eco_id, stripe_customer_id)
                      select 'eco_' || n, case when n % $2 <> 0 then 'cus_' || n end from generate_series(1, $1) n";
        sqlx::query(insert).bind(ACCOUNTS).bind(MISSING).execute(&db.pool).await?;
        sqlx::query(
            "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
             select eco_id, 'pro', 1, 'active', now() - interval '3 days' from eco_identities",
        )
        .execute(&db.pool)
        .await?;
        sqlx::query("select increment_api_calls(eco_id, 100100) from eco_identities")
            .execute(&db.pool)
            .await?;
        (1..=ACCOUNTS).for_each(|n| memory.add_customer(&format!("cus_{n}")));
        Ok(Self { db, memory })
    }

    fn engine(&self) -> Result<Engine> {
        self.engine_with(db::pool(&self.db.args(), Role::Billing)?)
    }

    fn engine_with(&self, pool: PgPool) -> Result<Engine> {
        let rate = NonZeroU32::new(1_000_000).context("not zero")?;
        Ok(Engine::new(pool, self.memory.clone(), Pace::new(rate), 8, CancellationToken::new()))
    }

    async fn run(&self, engine: &Engine, request_id: Option<Uuid>) -> Result<(Snapshot, Vec<AccountError>)> {
        let until = tokio::time::Instant::now() + Duration::from_secs(120);
        let request = Request { request_id, ..Request::default() };
        match engine.process(request, Uuid::now_v7(), until).await? {
            Answer::Run(run, errors) => Ok((run, errors)),
            Answer::AlreadyRunning(_) => bail!("another run"),
        }
    }

    /// A run that is killed some time after the query answers true: with some accounts charged, some charges written
    /// down, and one of which nobody knows whether it was made.
    async fn killed_run(&self, request_id: Option<Uuid>, at: &'static str) -> Result<()> {
        let pool = db::pool(&self.db.args(), Role::Billing)?;
        let engine = self.engine_with(pool.clone())?;
        let (guard, unanswered) = (engine.kill_guard(), self.memory.unanswered());
        let kill = async {
            until(&self.db, at).await?;
            self.memory.fail_next(Fault::NoAnswer);
            self.memory.until_unanswered(unanswered + 1).await;
            drop(guard);
            anyhow::Ok(())
        };
        let (answer, killed) = tokio::join!(self.run(&engine, request_id), kill);
        killed?;
        ensure!(answer.is_err(), "the run ended: {answer:?}");
        engine.finished().await;
        // PostgreSQL carries out what it was sent before the kill: who counts before that is done counts too few.
        pool.close().await;
        until(&self.db, NO_SESSION).await
    }

    async fn count(&self, query: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(query).fetch_one(&self.db.pool).await?)
    }
}

/// What a run tells that has looked at all of them.
fn check((run, errors): &(Snapshot, Vec<AccountError>)) {
    assert_eq!(run.status, RunStatus::Finished);
    let figures = run.figures;
    assert_eq!((figures.accounts, figures.processed), (ACCOUNTS, ACCOUNTS));
    assert_eq!((figures.charged, figures.failed), (ACCOUNTS - FAILED, FAILED));
    assert_eq!(figures.total, Micros(i64::from(ACCOUNTS - FAILED) * TEN_CENTS));
    assert_eq!(errors.len(), FAILED as usize);
    assert!(errors.iter().all(|error| error.reason == "NO_STRIPE_CUSTOMER"), "{errors:?}");
}

#[tokio::test]
async fn a_run_over_many_pages_charges_each_account_once_as_a_dry_run_says() -> Result<()> {
    let crowd = Crowd::new().await?;
    let pool = db::pool(&crowd.db.args(), Role::Billing)?;
    let DryRun { figures, charges, charges_count, errors, totals } = dry_run(&pool, None).await?;
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), [("USD".to_owned(), figures.total)]);
    assert_eq!((figures.processed, figures.charged, figures.failed), (ACCOUNTS, ACCOUNTS - FAILED, FAILED));
    assert_eq!((charges.len(), charges_count, errors.len()), (1_000, ACCOUNTS - FAILED, FAILED as usize));
    let engine = crowd.engine()?;
    check(&crowd.run(&engine, None).await?);
    assert_eq!(crowd.memory.items().len(), (ACCOUNTS - FAILED) as usize);
    let (again, errors) = crowd.run(&engine, None).await?;
    assert_eq!((again.figures.processed, errors.len()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_killed_goes_on_and_ends_with_the_figures_of_one_that_was_not() -> Result<()> {
    let crowd = Crowd::new().await?;
    let request_id = Some(Uuid::new_v4());
    crowd
        .killed_run(request_id, "select count(*) > 700 from eco_overage_charges where status = 'succeeded'")
        .await?;
    crowd
        .killed_run(request_id, "select count(*) > 1600 from eco_overage_charges where status = 'succeeded'")
        .await?;
    let engine = crowd.engine()?;
    let ended = crowd.run(&engine, request_id).await?;
    check(&ended);
    assert_eq!(crowd.memory.items().len(), (ACCOUNTS - FAILED) as usize);
    assert_eq!(crowd.count("select count(*) from eco_overage_runs").await?, 1);
    check(&crowd.run(&engine, request_id).await?);
    Ok(())
}

#[tokio::test]
async fn a_run_that_was_killed_for_good_is_marked_with_what_it_did() -> Result<()> {
    let crowd = Crowd::new().await?;
    crowd
        .killed_run(None, "select count(*) > 500 from eco_overage_charges where status = 'succeeded'")
        .await?;
    let charged = crowd.count("select count(*) from eco_overage_charges where status = 'succeeded'").await?;
    let (next, _) = crowd.run(&crowd.engine()?, None).await?;
    let first: (String, i32, i32) =
        sqlx::query_as("select status, charged, failed from eco_overage_runs where run_id <> $1")
            .bind(next.run_id)
            .fetch_one(&crowd.db.pool)
            .await?;
    assert_eq!((first.0.as_str(), i64::from(first.1)), ("failed", charged));
    // Who was told of in the first run is not told of again.
    assert_eq!(first.2 + next.figures.failed, FAILED);
    assert_eq!(i64::from(next.figures.charged) + charged, i64::from(ACCOUNTS - FAILED));
    Ok(())
}
