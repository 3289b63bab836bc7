//! A journal or the whole volume that goes while the server runs: the database is written to again when it is back.

use std::fs;

use anyhow::{Context, Result};
use tonic::Code;

use super::*;
use crate::outages::{has_retry_info, insist};

/// Returns once the database takes events, whatever is in the spool.
async fn written_again(server: &Server) -> Result<()> {
    eventually(async || Ok(server.metric("nexus_usage_degraded").await? == 0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_lost_costs_its_events_and_nothing_else() -> Result<()> {
    let world = World::new().await?;
    let server = &world.server;
    world.spool(3).await?;
    fs::remove_file(files(world.folder.path(), "redb")?.pop().context("a journal")?)?;
    // What is acknowledged from now on is not among them.
    record(server, event("eco_a")).await?;
    world.proxy.mend();
    drained(server).await?;
    assert_eq!(server.metric("nexus_usage_spool_damaged_journals").await?, 1);
    assert_eq!(world.sums().await?, plain(2));
    insist(server, event("eco_a")).await?;
    assert_eq!(world.sums().await?, plain(3));
    // The next outage is like any other.
    world.spool(2).await?;
    world.proxy.mend();
    drained(server).await?;
    assert_eq!(world.sums().await?, plain(5));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_lost_costs_the_spool_and_not_the_database() -> Result<()> {
    let mut world = World::new().await?;
    world.spool(3).await?;
    let folder = world.folder.path().to_owned();
    let away = folder.with_extension("away");
    fs::rename(&folder, &away)?;
    let status =
        refused(record(&world.server, event("eco_a")).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    has_retry_info(&status)?;
    eventually(async || Ok(health(&world.server).await? == NOT_SERVING)).await?;
    assert_eq!(world.server.operations("/readyz").await?.0, 503);

    world.proxy.mend();
    written_again(&world.server).await?;
    insist(&world.server, event("eco_a")).await?;
    assert_eq!(world.sums().await?, plain(2));
    assert_eq!(world.server.operations("/readyz").await?, (200, "ready\n".to_owned()));
    assert_eq!(world.server.metric("nexus_usage_spool_damaged_journals").await?, 1);

    // With its volume, what is on it is back.
    fs::rename(&away, &folder)?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.stop().await?;
    let world = world.restarted().await?;
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(5));
    Ok(())
}

/// Nobody has to lose an event for it to be noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_that_lost_its_volume_is_ready_while_the_database_is_there() -> Result<()> {
    let world = World::new().await?;
    let folder = world.folder.path();
    let away = folder.with_extension("away");
    fs::rename(folder, &away)?;
    world.proxy.cut();
    eventually(async || Ok(health(&world.server).await? == NOT_SERVING)).await?;
    assert_eq!(world.server.operations("/readyz").await?.0, 503);
    world.proxy.mend();
    eventually(async || Ok(health(&world.server).await? == SERVING)).await?;
    // Nor for it to be noticed that it is back.
    fs::rename(&away, folder)?;
    world.proxy.cut();
    let degraded = (200, "degraded\n".to_owned());
    eventually(async || Ok(world.server.operations("/readyz").await? == degraded)).await?;
    world.proxy.mend();
    drained(&world.server).await
}
