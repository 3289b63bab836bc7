//! Days that are rebuilt, plans that are changed, rows that somebody holds: only the calls that need what is locked
//! wait, and they are no outage.

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::{join_all, try_join_all};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{EventOutcome, RecordUsageRequest, UsageEvent};
use nexus_testkit::db::TestDb;
use nexus_usage::Config;
use tonic::{Code, Status};

use crate::{
    billing::Billing,
    outages::has_retry_info,
    spool::{World, drained},
    support::*,
};

/// Nothing was taken for an outage.
async fn is_undisturbed(server: &Server) -> Result<()> {
    for metric in ["nexus_usage_degraded", "nexus_usage_spool_events", "nexus_usage_spooled_events_total"] {
        assert_eq!(server.metric(metric).await?, 0, "{metric}");
    }
    assert_eq!(server.operations("/readyz").await?, (200, "ready\n".to_owned()));
    Ok(())
}

/// An event for a day that is being rebuilt, while events of other days come for the same account: these are counted
/// while it waits. It is refused in the end, and counted when it is sent again.
async fn late_event(server: &Server, db: &TestDb) -> Result<()> {
    let pool = &db.pool;
    record(server, event("eco_a")).await?;
    let at = now() - TimeDelta::days(1);
    let rebuild = hold_day(db, at).await?;
    let late = event_at("eco_a", at);
    let others = async {
        for _ in 0..3 {
            for answer in join_all((0..8).map(|_| record(server, event("eco_a")))).await {
                assert_eq!(answer?.outcome(), EventOutcome::Accepted);
            }
        }
        anyhow::Ok(sums(pool, "eco_a").await?)
    };
    let late_ones =
        join_all((0..3).map(|_| record(server, UsageEvent { event_id: new_id(), ..late.clone() })));
    let waited = async {
        let answers = late_ones.await;
        anyhow::Ok((answers, sums(pool, "eco_a").await?))
    };
    let (others, waited) = tokio::try_join!(others, waited)?;
    let (answers, counted) = waited;
    assert_eq!(others, plain(25));
    assert_eq!(counted, plain(25));
    for answer in answers {
        has_retry_info(&refused(answer, Code::Unavailable, "DATABASE_BUSY"))?;
    }
    rebuild.commit().await?;
    assert_eq!(record(server, late).await?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(pool, "eco_a").await?, plain(26));
    Ok(())
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_is_rebuilt_holds_up_its_own_events_alone() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    late_event(&server, &db).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_is_rebuilt_is_no_outage() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    let at = now() - TimeDelta::days(1);
    let rebuild = hold_day(&world.db, at).await?;
    let late = event_at("eco_a", at);
    let (waited, others) = tokio::join!(
        record(server, late.clone()),
        try_join_all((0..8).map(|_| record(server, event("eco_a")))),
    );
    others?;
    has_retry_info(&refused(waited, Code::Unavailable, "DATABASE_BUSY"))?;
    is_undisturbed(server).await?;
    assert_eq!(world.sums().await?, plain(9));
    rebuild.commit().await?;
    assert_eq!(record(server, late).await?.outcome(), EventOutcome::Accepted);
    assert_eq!(world.sums().await?, plain(10));
    is_undisturbed(server).await
}

/// It holds nothing meanwhile: neither the plan, nor, behind its change, whoever counts under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_waits_for_its_day_holds_up_no_change_of_plan() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let billing = Billing::start(&db).await?;
    let at = now() - TimeDelta::days(1);
    let rebuild = hold_day(&db, at).await?;
    let mut late = Box::pin(record(&server, event_at("eco_a", at)));
    let others = async {
        set_aside(&server, 1).await?;
        billing.change("eco_a", Plan::Enterprise).await?;
        anyhow::Ok(record(&server, event("eco_a")).await?)
    };
    tokio::select! {
        early = &mut late => anyhow::bail!("the others waited as long: {early:?}"),
        others = others => assert_eq!(others?.outcome(), EventOutcome::Accepted),
    }
    rebuild.commit().await?;
    assert_eq!(late.await?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_waits_for_its_day_does_not_wait_for_another() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let days = [now() - TimeDelta::days(1), now() - TimeDelta::days(2)];
    let [first, second] = [hold_day(&db, days[0]).await?, hold_day(&db, days[1]).await?];
    let mut of_first = Box::pin(record(&server, event_at("eco_a", days[0])));
    tokio::select! {
        early = &mut of_first => anyhow::bail!("its day is being rebuilt: {early:?}"),
        waits = set_aside(&server, 1) => waits?,
    }
    let mut of_second = Box::pin(record(&server, event_at("eco_a", days[1])));
    tokio::select! {
        early = &mut of_second => anyhow::bail!("its day is being rebuilt: {early:?}"),
        waits = set_aside(&server, 2) => waits?,
    }
    second.commit().await?;
    tokio::select! {
        early = &mut of_first => anyhow::bail!("the other waited for it: {early:?}"),
        answer = of_second => assert_eq!(answer?.outcome(), EventOutcome::Accepted),
    }
    first.commit().await?;
    assert_eq!(of_first.await?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_wait_for_a_day_take_no_room_from_others() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let server = Server::start_with(Config { ingest_queue: 100, ..config(db.args()) }).await?;
    assert_eq!(server.metric("nexus_usage_set_aside_events_limit").await?, 25);
    let at = now() - TimeDelta::days(1);
    let rebuild = hold_day(&db, at).await?;
    let late = |count: usize| record_batch(&server, (0..count).map(|_| event_at("eco_a", at)).collect());
    // More than there is room for: it takes all of it.
    let mut taken = Box::pin(late(60));
    tokio::select! {
        early = &mut taken => anyhow::bail!("its day is being rebuilt: {early:?}"),
        waits = set_aside(&server, 25) => waits?,
    }
    eventually(async || Ok(server.metric("nexus_usage_waiting_events").await? == 0)).await?;
    let others = async {
        let batch = record_batch(&server, (0..100).map(|_| event("eco_b")).collect()).await?;
        assert_eq!(batch.accepted_count, 100);
        has_retry_info(&refused(late(1).await, Code::Unavailable, "DATABASE_BUSY"))
    };
    tokio::select! {
        early = &mut taken => anyhow::bail!("the others waited as long: {early:?}"),
        others = others => others?,
    }
    rebuild.commit().await?;
    assert_eq!(taken.await?.accepted_count, 60);
    eventually(async || Ok(server.metric("nexus_usage_set_aside_events").await? == 0)).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(60));
    Ok(())
}

/// A call of its own client, for a server that is to stop.
fn call(
    server: &Server,
    event: UsageEvent,
) -> Result<impl Future<Output = Result<EventOutcome, Status>> + use<>> {
    let (mut client, options) = (server.client()?, service()?);
    let request = options.request(RecordUsageRequest { event: Some(event) });
    Ok(async move { Ok(client.record_usage(request).await?.into_inner().outcome()) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_answers_what_waits_for_a_day() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let days = [now() - TimeDelta::days(1), now() - TimeDelta::days(2)];
    let [first, second] = [hold_day(&db, days[0]).await?, hold_day(&db, days[1]).await?];
    let of_first = tokio::spawn(call(&server, event_at("eco_a", days[0]))?);
    let of_second = tokio::spawn(call(&server, event_at("eco_a", days[1]))?);
    set_aside(&server, 2).await?;
    let stop = tokio::spawn(server.stop());
    second.commit().await?;
    assert_eq!(of_second.await??, EventOutcome::Accepted);
    has_retry_info(&refused(of_first.await?, Code::Unavailable, "DATABASE_BUSY"))?;
    tokio::time::timeout(TIMEOUT, stop).await???;
    first.commit().await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_plan_holds_up_its_own_accounts_alone() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let others: Vec<String> = sqlx::query_scalar(
        "select eco_id from (select 'eco_' || i as eco_id from generate_series(1, 9) i) as accounts
         where nexus_plan_range(eco_id) <> nexus_plan_range('eco_a')",
    )
    .fetch_all(&db.pool)
    .await?;
    for other in &others {
        account(&db, other, Plan::Pro).await?;
    }
    let mut change = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('nexus_plan_range'), nexus_plan_range('eco_a'))")
        .execute(&mut *change)
        .await?;
    let meanwhile = async {
        set_aside(&server, 1).await?;
        for answer in join_all(others.iter().map(|other| record(&server, event(other)))).await {
            assert_eq!(answer?.outcome(), EventOutcome::Accepted);
        }
        assert_eq!(sums(&db.pool, "eco_a").await?, plain(0));
        change.commit().await?;
        anyhow::Ok(())
    };
    let (waited, meanwhile) = tokio::join!(record(&server, event("eco_a")), meanwhile);
    meanwhile?;
    assert_eq!(waited?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(1));
    Ok(())
}

/// A lock of which the writer does not know in advance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_holds_fails_its_own_calls_alone_and_is_no_outage() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    let admission = check(server, "eco_a", 1).await?.admission;
    let mut holder = nexus_kit::db::begin(&world.db.pool).await?;
    sqlx::query("select from eco_quota_leases where lease_id::text = $1 for update")
        .bind(&admission)
        .execute(&mut *holder)
        .await?;
    let admitted = || UsageEvent { admission: admission.clone(), event_id: new_id(), ..event("eco_a") };
    // The first waits alone; what comes meanwhile is one flush.
    let meanwhile = async {
        // A row that is held is waited for as its holder's transaction, which belongs to no database.
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        eventually(async || Ok(sqlx::query_scalar::<_, i64>(waits).fetch_one(&world.db.pool).await? > 0))
            .await?;
        anyhow::Ok(tokio::join!(
            record(server, admitted()),
            join_all((0..4).map(|_| record(server, event("eco_a")))),
            record(server, admitted()),
        ))
    };
    let (first, meanwhile) = tokio::join!(record(server, admitted()), meanwhile);
    let (second, others, third) = meanwhile?;
    for answer in [first, second, third] {
        has_retry_info(&refused(answer, Code::Unavailable, "DATABASE_BUSY"))?;
    }
    for answer in others {
        assert_eq!(answer?.outcome(), EventOutcome::Accepted);
    }
    is_undisturbed(server).await?;
    holder.commit().await?;
    assert_eq!(record(server, admitted()).await?.outcome(), EventOutcome::Accepted);
    assert_eq!(world.sums().await?, Sums { unadmitted: 5, ..plain(6) });
    Ok(())
}

/// No two flushes of ours wait in a circle, but somebody at the database may close one: PostgreSQL ends the flush, and
/// it is redone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_loses_a_deadlock_is_redone() -> Result<()> {
    let db = TestDb::new().await?;
    // The flush looks for a circle once, late enough for this one to be closed, before its wait for the lock ends.
    sqlx::raw_sql("do $$ begin execute format('alter database %I set deadlock_timeout = 4000', current_database()); end $$")
        .execute(&db.pool)
        .await?;
    let server = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    record(&server, event("eco_a")).await?;
    let mut other = nexus_kit::db::begin(&db.pool).await?;
    sqlx::raw_sql("set local deadlock_timeout = '1h'; set local lock_timeout = 0; select from eco_usage_hourly for update")
        .execute(&mut *other)
        .await?;
    let circle = async {
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        eventually(async || Ok(sqlx::query_scalar::<_, i64>(waits).fetch_one(&db.pool).await? > 0)).await?;
        // Granted when the flush has lost.
        sqlx::query("select from eco_usage_counters for update").execute(&mut *other).await?;
        anyhow::Ok(other.commit().await?)
    };
    let (recorded, circle) = tokio::join!(record(&server, event("eco_a")), circle);
    circle?;
    assert_eq!(recorded?.outcome(), EventOutcome::Accepted);
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

/// The drain tries a day again, too, and keeps nobody from the database meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_cannot_be_drained_for_a_rebuild_is_no_outage() -> Result<()> {
    let world = World::new().await?;
    let events = world.spool(3).await?;
    let rebuild = hold_day(&world.db, now()).await?;
    world.proxy.mend();
    eventually(async || Ok(world.server.metric("nexus_usage_degraded").await? == 0)).await?;
    let late = record(&world.server, event_at("eco_a", now() - TimeDelta::days(1))).await?;
    assert_eq!(late.outcome(), EventOutcome::Accepted);
    assert_eq!(world.server.metric("nexus_usage_spool_events").await?, i64::try_from(events.len())?);
    assert_eq!(world.sums().await?, plain(2));
    rebuild.commit().await?;
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(5));
    Ok(())
}

/// The database answers, but nobody reached it yet: health and metric say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_still_spools_says_so_though_the_database_answers() -> Result<()> {
    let world = World::new().await?;
    world.spool(1).await?;
    sqlx::query("revoke select on eco_spool_cursors from nexus_usage").execute(&world.db.pool).await?;
    world.proxy.mend();
    // The drain fails at its first step, for a reason that no retry ends.
    let reached = "select count(*) from pg_stat_activity where datname = current_database() and query ilike '%eco_spool_cursors%' and pid <> pg_backend_pid()";
    eventually(async || Ok(sqlx::query_scalar::<_, i64>(reached).fetch_one(&world.db.pool).await? > 0))
        .await?;
    assert_eq!(world.server.metric("nexus_usage_degraded").await?, 1);
    assert_eq!(world.server.operations("/readyz").await?, (200, "degraded\n".to_owned()));
    Ok(())
}
