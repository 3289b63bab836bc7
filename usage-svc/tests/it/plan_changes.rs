//! Who waits for whom when a plan changes, and what is admitted from then on.

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::db::TestDb;
use tonic::Code;

use crate::{billing::Billing, segments::closed_sums_hold, support::*};

/// A flush that has begun is in the segment that it closes; one that begins later waits, and is in the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_meets_a_change_waits_for_it_and_counts_in_the_new_segment() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, event("eco_a")).await?;
    let mut change = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('nexus_plan_range'), nexus_plan_range('eco_a'))")
        .execute(&mut *change)
        .await?;
    let changed = async {
        set_aside(&server, 1).await?;
        sqlx::query(
            "insert into eco_usage_segments
             select eco_id, nexus_period_start(anchor_time, now()), 0, plan, plan_version, now(), 1, 0
             from eco_subscriptions",
        )
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        anyhow::Ok(())
    };
    let (answer, changed) = tokio::join!(record(&server, event("eco_a")), changed);
    answer?;
    changed?;
    let counted: Vec<(i32, i64)> =
        sqlx::query_as("select segment, count(*) from eco_api_usage group by 1 order by 1")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(counted, [(0, 1), (1, 1)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_the_flushes_that_count_under_the_old_plan() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let billing = Billing::start(&db).await?;
    // As a flush does: its account's plan is held before it reads and writes.
    let mut flush = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query(
        "select pg_advisory_xact_lock_shared(hashtext('nexus_plan_range'), nexus_plan_range('eco_a'))",
    )
    .execute(&mut *flush)
    .await?;
    let counted = async {
        lock_is_waited_for(&db).await?;
        sqlx::query("select increment_api_calls('eco_a', 7)").execute(&mut *flush).await?;
        flush.commit().await?;
        anyhow::Ok(())
    };
    let (changed, counted) = tokio::join!(billing.change("eco_a", Plan::Free), counted);
    changed?;
    counted?;
    let closed: Vec<(i32, i64)> =
        sqlx::query_as("select segment, recorded_units from eco_usage_segments").fetch_all(&db.pool).await?;
    assert_eq!(closed, [(0, 7)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_admits_at_every_replica_and_a_downgrade_refuses_at_every_replica() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let billing = Billing::start(&db).await?;
    let servers = [Server::start(db.args()).await?, Server::start(db.args()).await?];
    hear(&db, 2).await?;
    check(&servers[0], "eco_a", 1000).await?;
    for server in &servers {
        refused(check(server, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    }
    billing.change("eco_a", Plan::Pro).await?;
    for server in &servers {
        eventually(async || Ok(check(server, "eco_a", 1).await.is_ok())).await?;
    }
    let events = (0..5).map(|_| UsageEvent { units_count: 300, ..event("eco_a") }).collect();
    record_batch(&servers[0], events).await?;

    // Far beyond the limit of free: nothing is granted any more from the change on, heard or not.
    billing.change("eco_a", Plan::Free).await?;
    let granted_before = granted(&db, "eco_a").await?;
    burst(&[&servers[0], &servers[1]], "eco_a", 500).await?;
    assert!(granted(&db, "eco_a").await? <= granted_before, "units were granted by the plan of before");
    for server in &servers {
        eventually(async || Ok(check(server, "eco_a", 1).await.is_err())).await?;
        let refusal = refused(check(server, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert!(refusal.message().contains("of 1000 units"), "{refusal:?}");
        let shown = current(server, "eco_a").await?;
        assert_eq!((shown.api_calls_count, shown.limit_count, shown.remaining_count), (1500, 1000, 0));
        assert_eq!(shown.overage_count, 0);
    }
    Ok(())
}

/// The change is not notified, as if it had been committed a moment ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_not_heard_of_a_downgrade_is_granted_nothing_by_the_plan_of_before() -> Result<()>
{
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Enterprise).await?;
    hear(&db, 1).await?;
    assert_eq!(check(&server, "eco_a", 1).await?.limit_count, -1);
    let mut silent = nexus_kit::db::begin(&db.pool).await?;
    for statement in [
        "set local session_replication_role = replica",
        "update eco_subscriptions set plan = 'free', plan_epoch = plan_epoch + 1",
    ] {
        sqlx::query(statement).execute(&mut *silent).await?;
    }
    silent.commit().await?;
    let refusal = refused(check(&server, "eco_a", 100_000).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(refusal.message().contains("of 1000 units"), "{refusal:?}");
    Ok(())
}

/// Whoever has not heard of a change yet asks with the terms of before.
#[tokio::test]
async fn nothing_is_granted_by_the_plan_of_before() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Enterprise).await?;
    let billing = Billing::start(&db).await?;
    let grant = async |epoch: i32| {
        let statement = "select granted from eco_subscriptions s, nexus_grant_quota($1, gen_random_uuid(),
            gen_random_uuid(), s.eco_id, nexus_period_start(s.anchor_time, now()),
            nexus_period_end(s.anchor_time, now()), null, 1, 1, 10)";
        sqlx::query_scalar::<_, Option<i64>>(statement).bind(epoch).fetch_one(&db.pool).await
    };
    assert_eq!(grant(0).await?, Some(10));
    billing.change("eco_a", Plan::Free).await?;
    assert_eq!(grant(0).await?, None);
    assert_eq!(grant(1).await?, Some(10));
    assert_eq!(granted(&db, "eco_a").await?, 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushes_of_many_accounts_and_changes_of_their_plans_all_come_to_their_end() -> Result<()> {
    let db = TestDb::new().await?;
    let ids: Vec<String> = (0..200).map(|n| format!("eco_{n}")).collect();
    for id in &ids {
        account(&db, id, Plan::Free).await?;
    }
    let billing = Billing::start(&db).await?;
    let servers = [Server::start(db.args()).await?, Server::start(db.args()).await?];
    let batches = (0..12).map(|n| {
        let mut events: Vec<UsageEvent> = ids.iter().map(|id| event(id)).collect();
        if n % 2 == 1 {
            events.reverse();
        }
        record_batch(&servers[n % 2], events)
    });
    let changes = ids.iter().step_by(5).map(|id| billing.change(id, Plan::Pro));
    let (batches, changes) = tokio::join!(try_join_all(batches), join_all(changes));
    assert!(batches?.iter().all(|answer| answer.accepted_count == 200));
    changes.into_iter().collect::<Result<Vec<_>>>()?;
    closed_sums_hold(&db).await?;
    Ok(())
}
