//! The disk buffer: outages longer than the queue, and clients that end meanwhile.

use std::{path::Path, time::Duration};

use anyhow::Result;
use nexus_client::{BuildError, SpoolError, tracker::Tracker};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::db::TestDb;
use tokio::{runtime::Runtime, task::yield_now};
use uuid::Uuid;

use crate::support::*;

const ROOM: u64 = 16 * 1024 * 1024;
const QUEUE: usize = 50;

async fn tracker_on(file: &Path, url: &str, room: u64) -> Result<Tracker> {
    let builder = tracker(url)?.queue_capacity(QUEUE).in_flight(2).flush_records(10);
    Ok(builder.disk_buffer(file, room).build().await?)
}

/// Tracks events with ids of their own, as fast as the tracker takes them.
async fn track_all(tracker: &Tracker, ids: &[Uuid]) -> Result<()> {
    for id in ids {
        while tracker.stats().queued >= QUEUE as u64 {
            yield_now().await;
        }
        tracker.track(UsageEvent { event_id: id.to_string(), ..event("eco_a") })?;
    }
    Ok(())
}

fn ids(count: usize) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::now_v7()).collect()
}

async fn ids_counted(db: &TestDb) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar("select event_id from eco_api_usage order by event_id").fetch_all(&db.pool).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_the_queue_loses_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let folder = tempfile::tempdir()?;
    let address = nowhere()?;
    let tracker = tracker_on(&folder.path().join("usage.redb"), &format!("http://{address}"), ROOM).await?;
    let ids = ids(3_000);
    track_all(&tracker, &ids).await?;
    let server = Server::start_at(address, db.args()).await?;
    tracker.flush().await?;
    let stats = tracker.stats();
    assert_eq!((stats.accepted, stats.queued, stats.on_disk, stats.lost()), (3_000, 0, 0, 0), "{stats:?}");
    assert_eq!(ids_counted(&db).await?, ids);
    assert_eq!(counted(&db.pool, "eco_a").await?, each(3_000));
    server.kill().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_disk_survives_a_client_that_is_killed() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("usage.redb");
    let address = nowhere()?;
    let url = format!("http://{address}");
    let ids = ids(500);
    // A client on a runtime of its own, which ends without a word to the tracker.
    let (its_file, its_url, its_ids) = (file.clone(), url.clone(), ids.clone());
    let client = move || -> Result<()> {
        let runtime = Runtime::new()?;
        runtime.block_on(async {
            let tracker = tracker_on(&its_file, &its_url, ROOM).await?;
            track_all(&tracker, &its_ids).await?;
            while tracker.stats().on_disk < its_ids.len() as u64 {
                yield_now().await;
            }
            std::mem::forget(tracker);
            Ok(())
        })
    };
    tokio::task::spawn_blocking(client).await??;

    let server = Server::start_at(address, db.args()).await?;
    let tracker = tracker_on(&file, &url, ROOM).await?;
    tracker.track(event("eco_a"))?;
    tracker.flush().await?;
    let stats = tracker.stats();
    assert_eq!((stats.recovered, stats.accepted, stats.on_disk), (500, 501, 0), "{stats:?}");
    assert_eq!(ids_counted(&db).await?[..500], ids);
    let report = tracker.shutdown(Duration::from_secs(20)).await;
    assert_eq!((report.on_disk, report.undelivered), (0, 0));

    let again = tracker_on(&file, &url, ROOM).await?;
    assert_eq!(again.stats().recovered, 0, "removed after the acknowledgement");
    server.kill().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_keeps_on_disk_what_it_cannot_deliver() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("usage.redb");
    let url = format!("http://{}", nowhere()?);
    let first = tracker_on(&file, &url, ROOM).await?;
    for _ in 0..45 {
        first.track(event("eco_a"))?;
    }
    let report = first.shutdown(Duration::ZERO).await;
    assert_eq!((report.undelivered, report.on_disk), (0, 45));
    let second = tracker_on(&file, &url, ROOM).await?;
    assert_eq!((second.stats().recovered, second.stats().on_disk), (45, 45));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_stay_in_memory_while_the_disk_buffer_is_full() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let folder = tempfile::tempdir()?;
    let address = nowhere()?;
    let room = 5_000;
    let tracker = tracker_on(&folder.path().join("usage.redb"), &format!("http://{address}"), room).await?;
    let mut taken = 10;
    track_all(&tracker, &ids(10)).await?;
    while tracker.stats().on_disk < 10 {
        yield_now().await;
    }
    // Until neither the disk nor the queue takes any more.
    while tracker.stats().dropped_queue_full < 100 {
        match tracker.track(event("eco_a")) {
            Ok(()) => taken += 1,
            Err(_) => yield_now().await,
        }
    }
    let stats = tracker.stats();
    assert!(stats.on_disk >= 10 && stats.queued >= QUEUE as u64, "{stats:?}");
    assert_eq!((stats.on_disk + stats.queued, stats.disk_errors), (taken, 0));
    let server = Server::start_at(address, db.args()).await?;
    tracker.flush().await?;
    assert_eq!(counted(&db.pool, "eco_a").await?.rows as u64, taken);
    server.kill().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_used_is_said_at_the_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("usage.redb");
    let _first = tracker_on(&file, "http://localhost:1", ROOM).await?;
    let second = tracker("http://localhost:1")?.disk_buffer(&file, ROOM).build().await;
    assert!(matches!(second.err(), Some(BuildError::Disk { error: SpoolError::InUse, .. })));
    let other = folder.path().join("text");
    std::fs::write(&other, "this is no database, and long enough to be looked at".repeat(100))?;
    let third = tracker("http://localhost:1")?.disk_buffer(&other, ROOM).build().await;
    assert!(matches!(third.err(), Some(BuildError::Disk { error: SpoolError::Damaged(_), .. })));
    Ok(())
}
