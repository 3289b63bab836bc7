//! What is acknowledged is counted once: across servers that are killed, answers that are lost, replicas that
//! go and events that are refused.

use std::time::Duration;

use anyhow::Result;
use nexus_client::tracker::{Closed, Dropped};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{EventOutcome, UsageEvent};
use nexus_testkit::{db::TestDb, proxy::Proxy};
use prost_types::Timestamp;
use tokio::task::yield_now;

use crate::support::*;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_killed_in_the_middle_of_flushes_lose_and_double_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let mut server = Server::start(db.args()).await?;
    let address = server.address;
    let tracker = tracker(&server.url())?.flush_records(10).build().await?;
    for _ in 0..5 {
        for _ in 0..40 {
            tracker.track(event("eco_a"))?;
        }
        let flushes = hold_flushes(&db).await?;
        for _ in 0..40 {
            tracker.track(event("eco_a"))?;
        }
        until(&db.pool, A_FLUSH_WAITS).await?;
        server.kill().await?;
        flushes.rollback().await?;
        server = Server::start_at(address, db.args()).await?;
    }
    tracker.flush().await?;
    let report = tracker.shutdown(LONG).await;
    let stats = report.stats;
    assert_eq!(counted(&db.pool, "eco_a").await?, each(400));
    assert_eq!((stats.accepted + stats.duplicates, stats.queued, report.undelivered), (400, 0, 0));
    assert!(stats.retries >= 5, "{stats:?}");
    assert_eq!(stats.trouble, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_after_the_commit_makes_duplicates_and_no_second_row() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    let proxy = Proxy::before_tcp(server.address).await?;
    let tracker = tracker(&format!("http://{}", proxy.address()))?.flush_records(7).build().await?;
    let flushes = hold_flushes(&db).await?;
    for _ in 0..7 {
        tracker.track(event("eco_a"))?;
    }
    until(&db.pool, A_FLUSH_WAITS).await?;
    proxy.silence();
    flushes.rollback().await?;
    until(&db.pool, "select count(*) = 7 from eco_api_usage").await?;
    proxy.cut();
    while tracker.stats().retries == 0 {
        yield_now().await;
    }
    proxy.mend();
    tracker.flush().await?;
    let stats = tracker.stats();
    assert_eq!((stats.accepted, stats.duplicates, stats.queued), (0, 7, 0), "{stats:?}");
    assert_eq!(counted(&db.pool, "eco_a").await?, each(7));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_given_up_after_the_time_limit() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    let proxy = Proxy::before_tcp(server.address).await?;
    let silent = format!("http://{}", proxy.address());
    proxy.silence();
    let limit = Duration::from_millis(100);
    let builder = tracker(&silent)?.replica(&server.url()).call_timeout(limit);
    let tracker = builder.build().await?;
    tracker.track(event("eco_a"))?;
    tracker.flush().await?;
    assert!(tracker.stats().retries >= 1);
    assert_eq!(counted(&db.pool, "eco_a").await?, each(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_takes_over_and_knows_what_the_first_has_counted() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (first, second) = (Server::start(db.args()).await?, Server::start(db.args()).await?);
    let tracker = tracker(&first.url())?.replica(&second.url()).build().await?;
    let same = UsageEvent {
        event_id: "018bcfe5-687b-4000-8000-000000000000".to_owned(),
        event_time: Some(Timestamp::from(std::time::SystemTime::now())),
        ..event("eco_a")
    };
    tracker.track(same.clone())?;
    tracker.flush().await?;
    first.kill().await?;
    tracker.track(same)?;
    tracker.track(event("eco_a"))?;
    tracker.flush().await?;
    let stats = tracker.stats();
    assert_eq!((stats.accepted, stats.duplicates), (2, 1), "{stats:?}");
    assert_eq!(counted(&db.pool, "eco_a").await?, each(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_events_are_counted_by_reason_and_block_no_others() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    let tracker = tracker(&server.url())?.build().await?;
    let known = UsageEvent { event_id: "0193cc4e-0000-4000-8000-000000000000".to_owned(), ..event("eco_a") };
    tracker.track(known.clone())?;
    tracker.track(UsageEvent { endpoint: "/v2/other".to_owned(), ..known })?;
    tracker.track(event("eco_missing"))?;
    tracker.track(UsageEvent { status_code: 42, ..event("eco_a") })?;
    tracker.track(UsageEvent { event_time: Some(Timestamp::default()), ..event("eco_a") })?;
    tracker.track(UsageEvent {
        event_time: Some(Timestamp { seconds: 4_102_444_800, nanos: 0 }),
        ..event("eco_a")
    })?;
    tracker.track(event("eco_a"))?;
    tracker.flush().await?;
    let stats = tracker.stats();
    let refused = stats.refused;
    assert_eq!((stats.accepted, stats.queued, stats.retries), (2, 0, 0), "{stats:?}");
    assert_eq!((refused.conflict, refused.unknown_account, refused.invalid), (1, 1, 1), "{refused:?}");
    assert_eq!((refused.too_old, refused.in_the_future, refused.total()), (1, 1, 5), "{refused:?}");
    assert_eq!(counted(&db.pool, "eco_a").await?, each(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_delivers_what_waits_and_takes_no_more() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    // Nothing would go out by itself.
    let builder = tracker(&server.url())?.flush_records(10_000).flush_interval(LONG * 60);
    let tracker = builder.build().await?;
    for _ in 0..2_345 {
        tracker.track(event("eco_a"))?;
    }
    assert_eq!(tracker.stats().queued, 2_345);
    let report = tracker.shutdown(LONG).await;
    assert_eq!((report.undelivered, report.stats.accepted, report.stats.queued), (0, 2_345, 0));
    assert_eq!(counted(&db.pool, "eco_a").await?, each(2_345));
    assert_eq!(tracker.track(event("eco_a")), Err(Dropped::Closed));
    assert_eq!(tracker.flush().await, Err(Closed));
    assert_eq!(tracker.stats().dropped_closed, 1);
    assert_eq!(tracker.shutdown(LONG).await, report, "the same report again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracker_that_is_dropped_delivers_what_it_took() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    let tracker = tracker(&server.url())?.flush_interval(LONG * 60).build().await?;
    tracker.track(event("eco_a"))?;
    drop(tracker);
    until(&db.pool, "select count(*) = 1 from eco_api_usage").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserved_place_tells_the_outcome_after_the_commit_and_a_shutdown_waits_for_it() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    let builder = tracker(&server.url())?.queue_capacity(3).flush_interval(Duration::ZERO);
    let tracker = builder.build().await?;
    let places = (tracker.reserve()?, tracker.reserve()?, tracker.reserve()?);
    assert_eq!(tracker.track(event("eco_a")), Err(Dropped::QueueFull));
    assert_eq!(tracker.reserve().err(), Some(Dropped::QueueFull));

    let flushes = hold_flushes(&db).await?;
    let mut delivery = Box::pin(places.0.track(event("eco_a")).outcome());
    until(&db.pool, A_FLUSH_WAITS).await?;
    assert!(futures::poll!(&mut delivery).is_pending(), "it is not committed yet");
    flushes.rollback().await?;
    assert_eq!(delivery.await, Ok(EventOutcome::Accepted));
    assert_eq!(counted(&db.pool, "eco_a").await?, each(1));
    let refused = places.1.track(event("eco_missing")).outcome().await;
    assert_eq!(refused, Ok(EventOutcome::UnknownAccount));

    let mut shutdown = Box::pin(tracker.shutdown(LONG));
    assert!(futures::poll!(&mut shutdown).is_pending());
    let last = places.2.track(event("eco_a"));
    assert_eq!(shutdown.await.stats.accepted, 2);
    assert_eq!(last.outcome().await, Ok(EventOutcome::Accepted));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_do_not_hold_yet_are_asked_again() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    let (set, token) = tokio::sync::watch::channel("Bearer not.a.token".to_owned());
    let renewed = nexus_client::Credentials::from_fn(move || Ok(token.borrow().clone()));
    let pauses = Duration::from_millis(5);
    let builder = nexus_client::Tracker::builder(&server.url(), renewed).backoff(pauses, pauses);
    let tracker = builder.flush_records(1).build().await?;
    tracker.track(event("eco_a"))?;
    let trouble = loop {
        match tracker.stats().trouble {
            Some(trouble) => break trouble,
            None => yield_now().await,
        }
    };
    assert!(trouble.starts_with("Unauthenticated"), "{trouble}");
    let good = nexus_testkit::settings::service_token(&[nexus_kit::auth::Scope::UsageWrite])?;
    set.send_replace(format!("Bearer {good}"));
    tracker.flush().await?;
    assert_eq!((tracker.stats().accepted, tracker.stats().trouble), (1, None));
    Ok(())
}
