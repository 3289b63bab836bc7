use anyhow::Result;
use nexus_proto::usage::v1::{BatchRecordUsageRequest, BatchRecordUsageResponse};
use nexus_usage::{Config, StartError, spool::SpoolError};
use tonic::{Code, Status};

use super::*;
use crate::outages::{has_retry_info, insist};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_is_unavailable_and_loses_nothing() -> Result<()> {
    let world = World::with(|config| Config { spool_max_bytes: 1 << 20, ..config }).await?;
    world.proxy.cut();
    let mut taken = 0;
    let (status, refused_events) = loop {
        let events: Vec<UsageEvent> = (0..200).map(|_| event("eco_a")).collect();
        match record_batch(&world.server, events.clone()).await {
            Ok(answer) => taken += i64::from(answer.accepted_count),
            Err(status) => break (status, events),
        }
    };
    assert_eq!((status.code(), taken > 0), (Code::Unavailable, true));
    has_retry_info(&status)?;
    assert!(world.server.metric("nexus_usage_spool_bytes").await? <= 1 << 20);
    assert_eq!(world.server.metric("nexus_usage_spool_refused_events_total").await?, 200);
    eventually(async || Ok(health(&world.server).await? == NOT_SERVING)).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(1 + taken));
    for event in refused_events.into_iter().take(3) {
        insist(&world.server, event).await?;
    }
    assert_eq!(world.sums().await?, plain(4 + taken));
    // There is room for the next outage.
    world.spool(3).await?;
    assert_eq!(world.server.operations("/readyz").await?.0, 200);
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(7 + taken));
    eventually(async || Ok(health(&world.server).await? == SERVING)).await
}

/// Records so many events of an account by its key.
async fn by_key(
    server: &Server,
    key: &str,
    eco_id: &str,
    events: usize,
) -> Result<Result<BatchRecordUsageResponse, Status>> {
    let request = BatchRecordUsageRequest { events: (0..events).map(|_| event(eco_id)).collect() };
    let answer = server.client()?.batch_record_usage(api_key(key)?.request(request)).await;
    Ok(answer.map(|answer| answer.into_inner()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_one_account_leave_room_for_everybody_else() -> Result<()> {
    let db = TestDb::new().await?;
    for eco_id in ["eco_a", "eco_b"] {
        account(&db, eco_id, Plan::Pro).await?;
    }
    let world = World::before(db, |config| Config { spool_max_bytes: 4 << 20, ..config }).await?;
    let server = &world.server;
    let (crowd, other) =
        (make_key(server, "eco_a", false).await?.key, make_key(server, "eco_b", false).await?.key);
    by_key(server, &crowd, "eco_a", 1).await??;
    by_key(server, &other, "eco_b", 1).await??;
    world.proxy.cut();
    let mut taken = 0;
    let full = loop {
        match by_key(server, &crowd, "eco_a", 500).await? {
            Ok(answer) => taken += i64::from(answer.accepted_count),
            Err(status) => break status,
        }
    };
    has_retry_info(&refused(Err::<(), _>(full), Code::Unavailable, "DATABASE_UNAVAILABLE"))?;
    assert!(taken > 0, "its part is not empty");
    assert_eq!(server.metric("nexus_usage_spool_refused_events_total").await?, 500);

    // It is nobody else's fault: not of another account, nor of a service that records for the same.
    assert_eq!(by_key(server, &other, "eco_b", 500).await??.accepted_count, 500);
    let batch = record_batch(server, (0..500).map(|_| event("eco_a")).collect()).await?;
    assert_eq!(batch.accepted_count, 500);
    assert_eq!(server.operations("/readyz").await?, (200, "degraded\n".to_owned()));
    let still = by_key(server, &crowd, "eco_a", 500).await?;
    refused(still, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert_eq!(server.operations("/readyz").await?, (200, "degraded\n".to_owned()));

    world.proxy.mend();
    drained(server).await?;
    assert_eq!(world.sums().await?, plain(2 + taken + 500));
    assert_eq!(sums(&world.db.pool, "eco_b").await?, plain(501));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_is_unavailable_until_it_works_again() -> Result<()> {
    let world = World::new().await?;
    let folder = world.folder.path();
    let away = folder.with_extension("away");
    std::fs::rename(folder, &away)?;
    world.proxy.cut();
    let lost = event("eco_a");
    let status =
        refused(record(&world.server, lost.clone()).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    has_retry_info(&status)?;
    eventually(async || Ok(health(&world.server).await? == NOT_SERVING)).await?;
    std::fs::rename(&away, folder)?;
    // It finds out by itself: health keeps callers away.
    eventually(async || Ok(health(&world.server).await? == SERVING)).await?;
    record(&world.server, lost).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_do_not_share_a_spool() -> Result<()> {
    let world = World::new().await?;
    let second = Server::start_with(world.config()?).await?.stop().await.err();
    let error = second.and_then(|error| error.downcast::<StartError>().ok());
    assert!(matches!(error, Some(StartError::Spool(SpoolError::InUse(_)))), "{error:?}");
    Ok(())
}
