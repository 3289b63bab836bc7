use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::try_join_all;
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{EventOutcome, StreamUsageRequest, UsageEvent};
use nexus_usage::Config;
use sqlx::AssertSqlSafe;
use tonic::Code;

use super::*;
use crate::outages::{has_retry_info, insist};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_acknowledged_while_the_database_is_away_and_counted_once_when_it_is_back() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    world.spool(3).await?;
    let batch = record_batch(server, (0..500).map(|_| event("eco_a")).collect()).await?;
    assert_eq!((batch.accepted_count, batch.results.len()), (500, 0));
    let request = StreamUsageRequest { batch_id: 7, events: vec![event("eco_a")] };
    let options: CallOptions = service()?;
    let stream = options.request(tokio_stream::iter([request]));
    let mut acknowledged = server.client()?.stream_usage(stream).await?.into_inner();
    assert_eq!(acknowledged.message().await?.map(|answer| answer.accepted_count), Some(1));

    // Degraded, not dead.
    assert_eq!(server.metric("nexus_usage_degraded").await?, 1);
    assert_eq!(server.metric("nexus_usage_spooled_events_total").await?, 504);
    assert_eq!(server.operations("/readyz").await?, (200, "degraded\n".to_owned()));
    assert_eq!(health(server).await?, SERVING);
    assert_eq!(world.sums().await?, plain(1));

    world.proxy.mend();
    drained(server).await?;
    assert_eq!(world.sums().await?, plain(505));
    assert_eq!(server.metric("nexus_usage_drained_events_total").await?, 504);
    // The file goes a moment after its events.
    eventually(async || Ok(server.metric("nexus_usage_spool_bytes").await? == 0)).await?;
    assert_eq!(quarantine(&world.db).await?, []);
    insist(server, event("eco_a")).await?;
    assert_eq!(world.sums().await?, plain(506));
    Ok(())
}

/// A connection to the database that is made anew is no reason to forget who was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_after_a_broken_connection_is_taken_into_the_spool() -> Result<()> {
    let world = World::new().await?;
    let feed = "from pg_stat_activity where datname = current_database() and state = 'idle' and query like 'select pg_notify%'";
    // Not as a condition: that could be asked before the others, of the servers of other tests.
    let broken = format!("select pid, pg_terminate_backend(pid) {feed}");
    // None is idle while it sends itself a notification.
    let broken = loop {
        let found = sqlx::query_as::<_, (i32, bool)>(AssertSqlSafe(broken.as_str()));
        if let Some((pid, true)) = found.fetch_optional(&world.db.pool).await? {
            break pid;
        }
    };
    let another = format!("select count(*) {feed} and pid <> $1");
    eventually(async || {
        let another = sqlx::query_scalar::<_, i64>(AssertSqlSafe(another.clone())).bind(broken);
        Ok(another.fetch_one(&world.db.pool).await? == 1)
    })
    .await?;
    world.spool(2).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(3));
    assert_eq!(world.server.operations("/readyz").await?, (200, "ready\n".to_owned()));
    Ok(())
}

/// Without traffic nobody meets the outage but whoever asks for the health.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_says_that_it_is_degraded() -> Result<()> {
    let world = World::new().await?;
    world.proxy.cut();
    eventually(async || Ok(world.server.metric("nexus_usage_degraded").await? == 1)).await?;
    assert_eq!(world.server.operations("/readyz").await?.0, 200);
    world.proxy.mend();
    drained(&world.server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_database_can_tell_is_unavailable_meanwhile() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    let made = make_key(server, "eco_a", false).await?;
    let known = UsageEvent { api_key_id: key_id(&made), ..event("eco_a") };
    insist(server, known.clone()).await?;
    account(&world.db, "eco_b", Plan::Pro).await?;
    world.proxy.cut();

    let other_key = UsageEvent { api_key_id: format!("eco_api_{}", "x".repeat(22)), ..event("eco_a") };
    for event in [event("eco_b"), event("eco_nobody"), other_key] {
        let status = refused(record(server, event).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
        has_retry_info(&status)?;
    }
    // All of a call or none.
    let mixed = record_batch(server, vec![event("eco_a"), event("eco_b")]).await;
    refused(mixed, Code::Unavailable, "DATABASE_UNAVAILABLE");
    let known = UsageEvent { event_id: uuid::Uuid::now_v7().to_string(), ..known };
    assert_eq!(record(server, known).await?.outcome(), EventOutcome::Accepted);

    world.proxy.mend();
    drained(server).await?;
    assert_eq!(world.sums().await?, plain(3));
    insist(server, event("eco_b")).await?;
    refused(record(server, event("eco_nobody")).await, Code::NotFound, "ACCOUNT_NOT_FOUND");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ages_are_judged_when_events_are_accepted() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    world.spool(1).await?;
    let old = event_at("eco_a", now() - TimeDelta::days(36));
    refused(record(server, old.clone()).await, Code::FailedPrecondition, "EVENT_TOO_OLD");
    let ahead = event_at("eco_a", now() + TimeDelta::minutes(6));
    refused(record(server, ahead.clone()).await, Code::FailedPrecondition, "EVENT_IN_THE_FUTURE");
    let just =
        [event_at("eco_a", now() - TimeDelta::days(34)), event_at("eco_a", now() + TimeDelta::minutes(4))];
    let batch = record_batch(server, [vec![old, ahead], just.to_vec()].concat()).await?;
    let outcomes: Vec<EventOutcome> = batch.results.iter().map(|r| r.outcome()).collect();
    assert_eq!(outcomes, [EventOutcome::TooOld, EventOutcome::InTheFuture]);
    world.proxy.mend();
    drained(server).await?;
    assert_eq!(world.sums().await?, plain(4));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_account_is_not_taken_for_an_open_one() -> Result<()> {
    let world = World::new().await?;
    close(&world.db, "eco_a").await?;
    let closed = async || {
        let answer = record(&world.server, event("eco_a")).await;
        Ok(answer.is_err_and(|status| status.code() == Code::FailedPrecondition))
    };
    eventually(closed).await?;
    world.proxy.cut();
    refused(record(&world.server, event("eco_a")).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_silent_is_away_too() -> Result<()> {
    let bound = Duration::from_secs(2);
    let world = World::with(|config| Config { flush_timeout: bound, ..config }).await?;
    world.proxy.silence();
    for _ in 0..3 {
        record(&world.server, event("eco_a")).await?;
    }
    assert_eq!(world.server.metric("nexus_usage_spool_events").await?, 3);
    // A look at a silent database takes nearly as long as is waited for: on a busy machine one may be too late.
    eventually(async || Ok(health(&world.server).await? == SERVING)).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(4));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_were_admitted_are_booked_when_their_events_are_drained() -> Result<()> {
    let world = World::new().await?;
    let admission = check(&world.server, "eco_a", 5).await?.admission;
    world.spool(0).await?;
    let admitted = UsageEvent { admission, units_count: 5, ..event("eco_a") };
    record(&world.server, admitted).await?;
    record(&world.server, event("eco_a")).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, Sums { unadmitted: 2, ..plain(7) });
    let booked: i64 = sqlx::query_scalar("select sum(booked_units)::bigint from eco_quota_leases")
        .fetch_one(&world.db.pool)
        .await?;
    assert_eq!(booked, 5);
    Ok(())
}

/// Sent again while the first is in the spool, and again once the database is back; two replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_sent_again_count_once_whichever_comes_first() -> Result<()> {
    let world = World::new().await?;
    let other = Server::start(world.db.args()).await?;
    let events = world.spool(4).await?;
    record(&world.server, events[0].clone()).await?;
    for event in &events[..3] {
        assert_eq!(record(&other, event.clone()).await?.outcome(), EventOutcome::Accepted);
    }
    let conflicting = UsageEvent { units_count: 9, ..event("eco_a") };
    record(&world.server, conflicting.clone()).await?;
    record(&other, UsageEvent { units_count: 2, ..conflicting.clone() }).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(1 + 4 + 2));
    for event in events {
        assert_eq!(record(&world.server, event).await?.outcome(), EventOutcome::Duplicate);
    }
    assert_eq!(quarantine(&world.db).await?, [("conflict".to_owned(), 9)]);
    assert_eq!(world.server.metric("nexus_usage_quarantined_events_total").await?, 1);
    assert_eq!(world.server.metric("nexus_usage_drained_events_total").await?, 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_that_come_and_go_lose_and_double_nothing() -> Result<()> {
    let world = World::new().await?;
    let over = AtomicBool::new(false);
    let senders = (0..8).map(|_| async {
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            insist(&world.server, event("eco_a")).await?;
            sent += 1;
        }
        anyhow::Ok(sent)
    });
    let outages = async {
        for _ in 0..8 {
            // It may know the account no more, when the last outage is just over.
            let met = async || {
                let spooled = world.server.metric("nexus_usage_spooled_events_total").await?;
                anyhow::Ok(spooled + world.server.metric("nexus_usage_spool_refused_events_total").await?)
            };
            let before = met().await?;
            world.proxy.cut();
            eventually(async || Ok(met().await? > before)).await?;
            let recorded = world.sums().await?.raw;
            world.proxy.mend();
            eventually(async || Ok(world.sums().await?.raw > recorded)).await?;
        }
        over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (sent, ()) = tokio::try_join!(try_join_all(senders), outages)?;
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(1 + sent.into_iter().sum::<i64>()));
    assert!(world.server.metric("nexus_usage_spooled_events_total").await? > 0);
    Ok(())
}
