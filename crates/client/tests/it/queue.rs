//! Bounds and times: what does not fit is dropped and counted, and batches go out when they are due.

use std::time::Duration;

use anyhow::Result;
use nexus_client::tracker::{Dropped, Tracker};
use tokio::{
    task::yield_now,
    time::{Instant, advance},
};

use crate::support::*;

#[tokio::test]
async fn a_full_queue_drops_at_once_and_every_event_is_accounted_for() -> Result<()> {
    let url = format!("http://{}", nowhere()?);
    let builder = tracker(&url)?.queue_capacity(50).in_flight(2).flush_records(10);
    let tracker = builder.build().await?;
    let (mut taken, mut dropped) = (0, 0);
    // Until the worker holds all it may and the queue behind it is full too.
    while dropped < 100 {
        match tracker.track(event("eco_a")) {
            Ok(()) => taken += 1,
            Err(why) => {
                assert_eq!(why, Dropped::QueueFull);
                dropped += 1;
            }
        }
        if dropped == 0 {
            yield_now().await;
        }
    }
    let stats = tracker.stats();
    assert_eq!((stats.tracked, stats.dropped_queue_full, stats.queued), (taken, dropped, taken), "{stats:?}");
    assert!((50..=350).contains(&taken), "{taken} in memory");
    let report = tracker.shutdown(Duration::ZERO).await;
    assert_eq!((report.undelivered, report.on_disk, report.stats.queued), (taken, 0, 0));
    assert_eq!(report.stats.lost(), taken + dropped);
    Ok(())
}

/// Lets the worker do all it can at this time.
async fn settle() {
    for _ in 0..1_000 {
        yield_now().await;
    }
}

async fn unreachable_tracker() -> Result<Tracker> {
    let url = format!("http://{}", nowhere()?);
    Ok(nexus_client::Tracker::builder(&url, credentials()?).build().await?)
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_out_after_five_seconds() -> Result<()> {
    let tracker = unreachable_tracker().await?;
    for _ in 0..99 {
        tracker.track(event("eco_a"))?;
    }
    settle().await;
    advance(Duration::from_millis(4_990)).await;
    settle().await;
    assert_eq!(tracker.stats().trouble, None, "nothing was sent yet");
    advance(Duration::from_millis(20)).await;
    while tracker.stats().retries == 0 {
        yield_now().await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_hundred_records_go_out_at_once() -> Result<()> {
    let start = Instant::now();
    let tracker = unreachable_tracker().await?;
    for _ in 0..100 {
        tracker.track(event("eco_a"))?;
    }
    while tracker.stats().retries == 0 {
        yield_now().await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    Ok(())
}

#[tokio::test]
async fn settings_out_of_range_are_refused_by_name() -> Result<()> {
    let url = format!("http://{}", nowhere()?);
    let message = |builder: nexus_client::tracker::builder::Builder| async move {
        builder.build().await.err().map(|e| e.to_string())
    };
    let refused = message(tracker(&url)?.flush_records(10_001)).await;
    assert_eq!(refused.as_deref(), Some("flush_records must be 1 to 10,000"));
    let refused = message(tracker(&url)?.queue_capacity(0)).await;
    assert_eq!(refused.as_deref(), Some("queue_capacity must be 1 to 10,000,000 events"));
    let refused = message(tracker("localhost:1")?).await;
    assert!(refused.is_some_and(|m| m.contains("`localhost:1` is not the URL of a server")));
    Ok(())
}
