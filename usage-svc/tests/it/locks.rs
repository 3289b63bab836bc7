//! Days that are rebuilt, plans that are changed, rows that somebody holds: only the calls that need what is locked
//! wait, and they are no outage.

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::{join_all, try_join_all};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{EventOutcome, UsageEvent};
use sqlx::PgPool;
use tonic::Code;

use crate::{outages::has_retry_info, spool::World, support::*};

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
async fn late_event(server: &Server, pool: &PgPool) -> Result<()> {
    record(server, event("eco_a")).await?;
    let at = now() - TimeDelta::days(1);
    let mut rebuild = nexus_kit::db::begin(pool).await?;
    sqlx::query("select aggregate_daily_usage($1)").bind(at.date_naive()).execute(&mut *rebuild).await?;
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
    late_event(&server, &db.pool).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_is_rebuilt_is_no_outage() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    let at = now() - TimeDelta::days(1);
    let mut rebuild = nexus_kit::db::begin(&world.db.pool).await?;
    sqlx::query("select aggregate_daily_usage($1)").bind(at.date_naive()).execute(&mut *rebuild).await?;
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
        service_waits(&db).await?;
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
