use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use nexus_testkit::db::TestDb;
use nexus_usage::Config;
use tonic::Code;

use super::*;
use crate::outages::insist;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_with_events_in_its_spool_leaves_them_to_the_next() -> Result<()> {
    let mut world = World::new().await?;
    world.spool(20).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.kill().await?;
    // It knows no account: it is of no use before the database is back, and says so.
    let world = world.restarted().await?;
    assert_eq!(world.server.metric("nexus_usage_spool_events").await?, 20);
    refused(record(&world.server, event("eco_a")).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert_eq!(world.server.operations("/readyz").await?.0, 503);
    assert_eq!(health(&world.server).await?, NOT_SERVING);
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(21));
    eventually(async || Ok(health(&world.server).await? == SERVING)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_while_the_database_is_away_leaves_them_too() -> Result<()> {
    let mut world = World::new().await?;
    world.spool(3).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.stop().await?;
    world.proxy.mend();
    let world = world.restarted().await?;
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(4));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_it_drains_leaves_the_rest_to_the_next() -> Result<()> {
    let mut world = World::new().await?;
    world.spool(20).await?;
    let flushes = hold_flushes(&world.db).await?;
    world.proxy.mend();
    service_waits(&world.db).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.kill().await?;
    flushes.commit().await?;
    let world = world.restarted().await?;
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(21));
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in files(from, "redb")? {
        fs::copy(&file, to.join(file.file_name().context("it has a name")?))?;
    }
    Ok(())
}

/// As after a crash between the drain's commit and the removal of its file. That nothing is counted again does not
/// rest on the identities: here they are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_was_drained_and_comes_back_is_not_counted_again() -> Result<()> {
    let mut world = World::new().await?;
    world.spool(20).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.kill().await?;
    let kept = TempDir::new()?;
    copy(world.folder.path(), kept.path())?;
    world.proxy.mend();
    let mut world = world.restarted().await?;
    drained(&world.server).await?;
    // Its file goes a moment after its events.
    eventually(async || Ok(files(world.folder.path(), "redb")?.is_empty())).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.stop().await?;

    sqlx::query("delete from eco_api_usage").execute(&world.db.pool).await?;
    copy(kept.path(), world.folder.path())?;
    let world = world.restarted().await?;
    eventually(async || Ok(files(world.folder.path(), "redb")?.is_empty())).await?;
    assert_eq!(world.sums().await?, Sums { raw: 0, ..plain(21) });
    Ok(())
}

/// Commits of counters wait for an advisory lock.
async fn hold_commits(db: &TestDb) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    sqlx::raw_sql(
        "create function hold() returns trigger language plpgsql as $$
         begin perform pg_advisory_xact_lock(42); return null; end $$;
         create constraint trigger hold after insert or update on eco_usage_counters
         deferrable initially deferred for each row execute function hold();",
    )
    .execute(&db.pool)
    .await?;
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *holder).await?;
    Ok(holder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_whose_commit_is_not_answered_counts_once() -> Result<()> {
    let bound = Duration::from_secs(2);
    let world = World::with(|config| Config { flush_timeout: bound, ..config }).await?;
    world.spool(20).await?;
    let holder = hold_commits(&world.db).await?;
    world.proxy.mend();
    service_waits(&world.db).await?;
    world.proxy.silence();
    holder.commit().await?;
    // It is counted, and the server does not know.
    eventually(async || Ok(world.sums().await?.counted == 21)).await?;
    assert_eq!(world.server.metric("nexus_usage_spool_events").await?, 20);
    // So that nothing but the cursor keeps it from being counted again.
    sqlx::query("delete from eco_api_usage").execute(&world.db.pool).await?;
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, Sums { raw: 0, ..plain(21) });
    assert_eq!(quarantine(&world.db).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_whose_commit_is_not_answered_is_spooled_and_counts_once() -> Result<()> {
    let bound = Duration::from_secs(2);
    let world = World::with(|config| Config { flush_timeout: bound, ..config }).await?;
    let holder = hold_commits(&world.db).await?;
    let lose_the_answer = async {
        service_waits(&world.db).await?;
        world.proxy.silence();
        holder.commit().await?;
        eventually(async || Ok(world.sums().await?.counted == 2)).await
    };
    let (answer, lost) = tokio::join!(record(&world.server, event("eco_a")), lose_the_answer);
    lost?;
    answer?;
    assert_eq!(world.server.metric("nexus_usage_spooled_events_total").await?, 1);
    world.proxy.mend();
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(2));
    assert_eq!(quarantine(&world.db).await?, []);
    insist(&world.server, event("eco_a")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_drained_as_far_as_it_can_be_read_and_set_aside() -> Result<()> {
    let mut world = World::new().await?;
    world.spool(20).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.stop().await?;
    let file = files(world.folder.path(), "redb")?.pop().context("a journal")?;
    let mut bytes = fs::read(&file)?;
    bytes[..512].fill(0);
    fs::write(&file, &bytes)?;
    world.proxy.mend();
    let world = world.restarted().await?;
    assert_eq!(world.server.metric("nexus_usage_spool_damaged_journals").await?, 1);
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(21));
    eventually(async || Ok(!files(world.folder.path(), "damaged")?.is_empty())).await?;
    assert_eq!(fs::read(&files(world.folder.path(), "damaged")?[0])?, bytes);
    Ok(())
}

/// What a damaged file did not give is not taken for drained when a whole copy of it turns up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_copy_of_a_damaged_file_gives_what_was_missing() -> Result<()> {
    let mut world = World::new().await?;
    let events = world.spool(20).await?;
    let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
    server.stop().await?;
    let file = files(world.folder.path(), "redb")?.pop().context("a journal")?;
    let whole = fs::read(&file)?;
    let mut rotten = whole.clone();
    for lost in [0, 3, 4, 11] {
        let id: uuid::Uuid = events[lost].event_id.parse()?;
        let places: Vec<_> =
            (0..rotten.len() - 16).filter(|at| whole[*at..].starts_with(id.as_bytes())).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| rotten[at] ^= 1);
    }
    fs::write(&file, &rotten)?;
    world.proxy.mend();
    let mut world = world.restarted().await?;
    drained(&world.server).await?;
    assert_eq!(world.sums().await?, plain(17), "all but four");
    eventually(async || Ok(!files(world.folder.path(), "damaged")?.is_empty())).await?;

    // Twice: it is counted once.
    for _ in 0..2 {
        let server = std::mem::replace(&mut world.server, Server::start(world.db.args()).await?);
        server.stop().await?;
        fs::write(&file, &whole)?;
        world = world.restarted().await?;
        drained(&world.server).await?;
        assert_eq!(world.sums().await?, plain(21));
        assert_eq!(quarantine(&world.db).await?, []);
        eventually(async || Ok(!fs::exists(&file)?)).await?;
    }
    Ok(())
}
