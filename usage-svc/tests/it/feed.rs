//! The change feed: it hears, knows when it does not, and takes everything as changed after that.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::config::DbArgs;
use nexus_testkit::{db::TestDb, proxy::Proxy};
use nexus_usage::app::feed::{self, Change, Changes, Feed};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

struct Listening {
    feed: Arc<Feed>,
    changes: Changes,
    _stop: DropGuard,
}

/// A feed that hears.
async fn listen(args: &DbArgs) -> Result<Listening> {
    let stop = CancellationToken::new();
    let (feed, _task) = feed::start(args, stop.clone())?;
    let mut changes = feed.subscribe();
    assert_eq!(next(&mut changes).await?, Change::Everything);
    until(|| feed.heard_within(SECOND)).await?;
    Ok(Listening { feed, changes, _stop: stop.drop_guard() })
}

async fn next(changes: &mut Changes) -> Result<Change> {
    tokio::time::timeout(TIMEOUT, changes.next()).await?.context("the feed ended")
}

#[tokio::test]
async fn changes_of_keys_accounts_and_plans_are_heard() -> Result<()> {
    let (db, server) = server().await?;
    let Listening { mut changes, feed: _feed, _stop } = listen(&db.args()).await?;
    let eco_a = || Change::Account(EcoId::parse("eco_a").expect("an id"));
    account(&db, "eco_a", Plan::Free).await?;
    assert_eq!((next(&mut changes).await?, next(&mut changes).await?), (eco_a(), eco_a()));
    let key = make_key(&server, "eco_a", false).await?.api_key.context("a key")?.key_id;
    let run = async |statement: &'static str| sqlx::query(statement).execute(&db.pool).await;
    run("update eco_api_keys set last_used_time = now()").await?; // nothing that anyone caches
    run("update eco_api_keys set status = 'revoked', revoked_time = now()").await?;
    assert_eq!(next(&mut changes).await?, Change::Key(key.clone()));
    run("update eco_subscriptions set status = 'unpaid'").await?;
    assert_eq!(next(&mut changes).await?, eco_a());
    run("update eco_plans set included_units = 5 where plan = 'free'").await?;
    assert_eq!(next(&mut changes).await?, Change::Plans);
    run("update eco_plan_prices set monthly_micros = 5 where plan = 'free'").await?;
    assert_eq!(next(&mut changes).await?, Change::Plans);
    run("delete from eco_api_keys").await?;
    assert_eq!(next(&mut changes).await?, Change::Key(key));
    // Recording notifies of nothing: the next change is one of an account.
    record(&server, event("eco_a")).await?;
    run("update eco_identities set status = 'closed', closed_time = now()").await?;
    assert_eq!(next(&mut changes).await?, eco_a());
    Ok(())
}

#[tokio::test]
async fn a_feed_whose_connection_is_cut_or_silent_knows_that_it_hears_nothing() -> Result<()> {
    let db = TestDb::new().await?;
    let proxy = Proxy::before(&db).await?;
    let Listening { feed, mut changes, _stop } = listen(&proxy.args(&db)?).await?;
    for lose in [Proxy::cut, Proxy::silence] {
        lose(&proxy);
        until(|| !feed.heard_within(SECOND)).await?;
        account(&db, &format!("eco_{}", uuid::Uuid::new_v4().simple()), Plan::Free).await?;
        proxy.mend();
        // What was missed is not told; that something may have been is.
        assert_eq!(next(&mut changes).await?, Change::Everything);
        until(|| feed.heard_within(SECOND)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_subscriber_that_falls_behind_takes_everything_as_changed() -> Result<()> {
    let db = TestDb::new().await?;
    let Listening { mut changes, feed, _stop } = listen(&db.args()).await?;
    let mut quick = feed.subscribe();
    sqlx::query("select pg_notify('nexus_changes', 'key:' || n) from generate_series(1, 5000) n")
        .execute(&db.pool)
        .await?;
    while next(&mut quick).await? != Change::Key("5000".to_owned()) {}
    assert_eq!(next(&mut changes).await?, Change::Everything);
    Ok(())
}
