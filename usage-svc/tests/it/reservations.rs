//! Units of several accounts at once, and units that come back.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::db::{self, Role};
use nexus_testkit::db::TestDb;
use nexus_usage::app::{
    feed,
    outage::Outage,
    quota::{self, Quota},
    rate_limit::{self, Descriptor, Subject},
    verify_api_key::{self, Keys},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::*;

struct Holder {
    db: TestDb,
    quota: Quota,
    keys: Keys,
    holding: JoinHandle<()>,
    stop: CancellationToken,
}

impl Holder {
    /// Free accounts `eco_a` and `eco_b`, and a holder that hears of changes.
    async fn new() -> Result<Self> {
        let db = TestDb::new().await?;
        for eco_id in ["eco_a", "eco_b"] {
            account(&db, eco_id, Plan::Free).await?;
        }
        let stop = CancellationToken::new();
        let (feed, _task) = feed::start(&db.args(), stop.clone())?;
        let pool = db::pool(&db.args(), Role::Usage)?;
        let outage = Arc::new(Outage::new(feed.clone()));
        let (keys, _following) =
            verify_api_key::start(pool.clone(), outage.clone(), Duration::from_secs(60), stop.clone());
        let (quota, holding) =
            quota::start(pool, outage, Default::default(), "a test".to_owned(), TIMEOUT, stop.clone());
        until(|| feed.heard_within(Duration::from_secs(1))).await?;
        Ok(Self { db, quota, keys, holding, stop })
    }

    async fn stop(self) -> Result<TestDb> {
        self.stop.cancel();
        self.holding.await?;
        Ok(self.db)
    }

    /// Asks for units of several accounts, all or none; whether each passes.
    async fn ask(&self, units: [(&str, i64); 2]) -> Result<[bool; 2]> {
        let asks = units.map(|(eco_id, units)| (EcoId::parse(eco_id).expect("an id"), units));
        let descriptors = asks.map(|(eco_id, units)| Descriptor { subject: Subject::Account(eco_id), units });
        let answers = rate_limit::run(&self.quota, &self.keys, descriptors.into()).await?;
        Ok([answers[0].passes(), answers[1].passes()])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_admitted_beside_a_refusal_is_there_again() -> Result<()> {
    let holder = Holder::new().await?;
    assert_eq!(holder.ask([("eco_a", 10), ("eco_b", 1001)]).await?, [true, false]);
    assert_eq!(holder.ask([("eco_a", 10), ("eco_nobody", 1)]).await?, [true, false]);
    // At the latest when its lease is settled.
    eventually(async || Ok(holder.ask([("eco_a", 1000), ("eco_b", 1000)]).await? == [true, true])).await?;
    let db = holder.stop().await?;
    assert_eq!((granted(&db, "eco_a").await?, granted(&db, "eco_b").await?), (1000, 1000));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_units_go_back_though_their_lease_is_held_no_longer() -> Result<()> {
    let holder = Holder::new().await?;
    let eco_id = EcoId::parse("eco_a")?;
    let (_, first) = holder.quota.reserve(&eco_id, 10).await?;
    let (_, second) = holder.quota.reserve(&eco_id, 7).await?;
    let changes_to = async |plan: &str| {
        let statement = "update eco_subscriptions set plan = $1 where eco_id = 'eco_a'";
        sqlx::query(statement).bind(plan).execute(&holder.db.pool).await
    };
    // Heard, it takes away the lease; to another plan's terms, so that it can be seen that it was.
    changes_to("pro").await?;
    while holder.quota.admit(&eco_id, 1).await?.terms.plan != Plan::Pro {}
    drop(first);
    if let Some(second) = second {
        second.keep();
    }
    let quota_of_the_lease =
        "select granted_units - returned_units from eco_quota_leases where granted_units = 10";
    while sqlx::query_scalar::<_, i64>(quota_of_the_lease).fetch_one(&holder.db.pool).await? != 0 {}
    let kept = "select granted_units - returned_units from eco_quota_leases where granted_units >= 7 order by 1 desc";
    assert!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&holder.db.pool).await? >= 7);
    holder.stop().await?;
    Ok(())
}

/// The units of one account are decided, and those of the other wait, when the caller goes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_consumes_nothing() -> Result<()> {
    let holder = Holder::new().await?;
    assert_eq!(holder.ask([("eco_a", 10), ("eco_b", 10)]).await?, [true, true]);
    let mut locked = db::begin(&holder.db.pool).await?;
    sqlx::query("select from eco_quota_usage where eco_id = 'eco_b' for update")
        .execute(&mut *locked)
        .await?;
    let waits = "select exists (select from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock')";
    let waits = eventually(async || Ok(sqlx::query_scalar(waits).fetch_one(&holder.db.pool).await?));
    tokio::select! {
        asked = holder.ask([("eco_a", 1), ("eco_b", 900)]) => anyhow::bail!("decided: {asked:?}"),
        waits = waits => waits?,
    }
    locked.rollback().await?;
    let db = holder.stop().await?;
    assert_eq!((granted(&db, "eco_a").await?, granted(&db, "eco_b").await?), (10, 10));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_whose_leases_are_locked_holds_up_no_others_return() -> Result<()> {
    let holder = Holder::new().await?;
    assert_eq!(holder.ask([("eco_a", 10), ("eco_b", 10)]).await?, [true, true]);
    let mut locked = db::begin(&holder.db.pool).await?;
    sqlx::query("select from eco_quota_leases where eco_id = 'eco_a' for update")
        .execute(&mut *locked)
        .await?;
    // Nobody asks for either any more, so both are settled at once.
    let settled = async |eco_id: &str| {
        let query = "select bool_and(settled_time is not null) from eco_quota_leases where eco_id = $1";
        anyhow::Ok(sqlx::query_scalar::<_, bool>(query).bind(eco_id).fetch_one(&holder.db.pool).await?)
    };
    eventually(async || settled("eco_b").await).await?;
    assert!(!settled("eco_a").await?);
    locked.rollback().await?;
    eventually(async || settled("eco_a").await).await?;
    holder.stop().await?;
    Ok(())
}
