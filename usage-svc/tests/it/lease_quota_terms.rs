//! What holds for units in clients' hands: who may have them, changed plans, revoked keys, periods that end,
//! servers that stop, and changes that are not heard.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{LeaseQuotaRequest, LeaseQuotaResponse, RevokeApiKeyRequest};
use nexus_testkit::{db::TestDb, proxy::Proxy, seed};
use nexus_usage::Config;
use tonic::Code;

use crate::{
    lease_quota::{Leasing, settle, want},
    support::*,
};

/// A server that hears of changes, and a client that holds units of `eco_a`.
async fn holding(plan: Plan) -> Result<(TestDb, Server, Leasing, LeaseQuotaResponse)> {
    let (db, server) = server().await?;
    account(&db, "eco_a", plan).await?;
    hear(&db, 1).await?;
    let mut client = Leasing::at(&server).await?;
    let lease = client.ask(want(10)).await?;
    assert_eq!(lease.granted_count, 10);
    Ok((db, server, client, lease))
}

#[tokio::test]
async fn a_changed_plan_asks_units_back_and_is_in_force_with_the_next() -> Result<()> {
    let (db, _server, mut client, lease) = holding(Plan::Free).await?;
    sqlx::query("update eco_subscriptions set plan = 'pro'").execute(&db.pool).await?;
    client.is_recalled().await?;
    client.ask(settle(&lease.lease_id, 2)).await?;
    let next = client.ask(want(100)).await?;
    assert_eq!((next.granted_count, next.limit_count, next.consumed_count), (100, 100_000, 102));

    sqlx::query("update eco_plans set included_units = 50, hard_limit = true where plan = 'pro'")
        .execute(&db.pool)
        .await?;
    client.is_recalled().await?;
    client.ask(settle(&next.lease_id, 48)).await?;
    let last = client.ask(want(100)).await?;
    assert_eq!((last.granted_count, last.limit_count), (0, 50));
    assert_eq!(granted(&db, "eco_a").await?, 50);
    Ok(())
}

#[tokio::test]
async fn a_closed_account_asks_units_back_and_ends_the_stream() -> Result<()> {
    let (db, _server, mut client, lease) = holding(Plan::Free).await?;
    close(&db, "eco_a").await?;
    client.is_recalled().await?;
    client.send(want(1)).await?;
    client.is_recalled().await?;
    client.ask(settle(&lease.lease_id, 3)).await?;
    refused(client.next().await, Code::FailedPrecondition, "ACCOUNT_CLOSED");
    assert_eq!(granted(&db, "eco_a").await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_takes_back_what_it_holds_at_another_replica() -> Result<()> {
    let (db, server) = server().await?;
    let other = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Free).await?;
    account(&db, "eco_b", Plan::Free).await?;
    hear(&db, 2).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let key = api_key(&made.key)?;
    let mut client = Leasing::by(&key, &other).await?;
    let lease = client.ask(LeaseQuotaRequest { eco_id: String::new(), ..want(10) }).await?;
    assert_eq!(lease.granted_count, 10);
    let foreign = LeaseQuotaRequest { eco_id: "eco_b".to_owned(), ..want(1) };
    refused(Leasing::by(&key, &other).await?.ask(foreign).await, Code::PermissionDenied, "PERMISSION_DENIED");

    let revoke = RevokeApiKeyRequest { key_id: key_id(&made) };
    server.client()?.revoke_api_key(user("eco_a")?.request(revoke)).await?;
    client.is_recalled().await?;
    // What it used it can still say; it gets nothing.
    client.ask(LeaseQuotaRequest { want_count: 5, ..settle(&lease.lease_id, 4) }).await?;
    refused(client.next().await, Code::Unauthenticated, "INVALID_API_KEY");
    assert_eq!(granted(&db, "eco_a").await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_revoked_unheard_ends_its_stream_when_changes_are_heard_again() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let proxy = Proxy::before(&db).await?;
    let server = Server::start(proxy.args(&db)?).await?;
    let made = make_key(&server, "eco_a", false).await?;
    hear(&db, 1).await?;
    let mut client = Leasing::by(&api_key(&made.key)?, &server).await?;
    assert_eq!(client.ask(want(10)).await?.granted_count, 10);
    proxy.cut();
    sqlx::query("update eco_api_keys set status = 'revoked', revoked_time = now()").execute(&db.pool).await?;
    proxy.mend();
    let end = loop {
        if let Err(status) = client.next().await {
            break status.code();
        }
    };
    // Where the key could not be read right then, the next stream is refused.
    assert!(matches!(end, Code::Unauthenticated | Code::Unavailable), "{end:?}");
    Ok(())
}

/// Its message comes after the revocation that nobody told the stream of.
#[tokio::test]
async fn a_stream_whose_key_was_revoked_before_its_first_message_ends_with_that() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    hear(&db, 1).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let mut client = Leasing::by(&api_key(&made.key)?, &server).await?;
    let revoke = RevokeApiKeyRequest { key_id: key_id(&made) };
    server.client()?.revoke_api_key(user("eco_a")?.request(revoke)).await?;
    client.send(want(0)).await?;
    refused(client.next().await, Code::Unauthenticated, "INVALID_API_KEY");
    Ok(())
}

/// They go while one waits for the database and the others for their turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_who_go_away_before_they_are_answered_hold_nothing() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    hear(&db, 1).await?;
    check(&server, "eco_a", 1).await?;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = Leasing::at(&server).await?;
        while client.ask(want(0)).await?.valid_ms == 0 {}
        clients.push(client);
    }
    let mut locked = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select from eco_quota_usage for update").execute(&mut *locked).await?;
    for client in &clients {
        client.send(want(100)).await?;
    }
    service_waits(&db).await?;
    drop(clients);
    eventually(async || Ok(server.metric("nexus_requests_in_flight").await? == 0)).await?;
    locked.rollback().await?;
    eventually(async || Ok(check(&server, "eco_a", 999).await.is_ok())).await?;
    assert_eq!(current(&server, "eco_a").await?.forfeited_count, 0);
    Ok(())
}

#[tokio::test]
async fn users_and_keys_in_test_mode_lease_nothing() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let by_user = Leasing::by(&user("eco_a")?, &server).await.err().context("users may not lease")?;
    refused(Err::<(), _>(by_user.downcast()?), Code::PermissionDenied, "PERMISSION_DENIED");
    let key = api_key(&make_key(&server, "eco_a", true).await?.key)?;
    let by_key = Leasing::by(&key, &server).await.err().context("nothing is to be leased")?;
    refused(Err::<(), _>(by_key.downcast()?), Code::FailedPrecondition, "TEST_MODE_KEY");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_asks_units_back_before() -> Result<()> {
    let (db, server, mut client, lease) = holding(Plan::Free).await?;
    let stop = tokio::spawn(server.stop());
    client.is_recalled().await?;
    client.ask(settle(&lease.lease_id, 6)).await?;
    refused(client.next().await, Code::Unavailable, "STOPPING");
    tokio::time::timeout(TIMEOUT, stop).await???;
    assert_eq!(granted(&db, "eco_a").await?, 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_does_not_wait_for_clients_that_do_not_settle() -> Result<()> {
    let (db, server, mut client, _lease) = holding(Plan::Free).await?;
    let stop = tokio::spawn(server.stop());
    client.is_recalled().await?;
    refused(client.next().await, Code::Unavailable, "STOPPING");
    tokio::time::timeout(TIMEOUT, stop).await???;
    let again = Server::start(db.args()).await?;
    assert_eq!(current(&again, "eco_a").await?.forfeited_count, 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_of_a_period_that_ended_go_back_to_it() -> Result<()> {
    let db = TestDb::new().await?;
    // Ends in four seconds: the anchor is four years ago, on a day that this year has as well.
    let anchor: DateTime<Utc> =
        sqlx::query_scalar("select now() + interval '4 seconds' - interval '48 months'")
            .fetch_one(&db.pool)
            .await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor).await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    let mut client = Leasing::at(&server).await?;
    let old = client.ask(want(10)).await?;
    assert_eq!(old.granted_count, 10);
    assert!((1..=4_000).contains(&old.period_left_ms), "{old:?}");
    let new = loop {
        let next = client.ask(want(1)).await?;
        if next.granted_count > 0 && next.period_start_time != old.period_start_time {
            break next;
        }
        if next.granted_count > 0 {
            client.ask(settle(&next.lease_id, 0)).await?;
        }
    };
    assert_eq!(new.period_start_time, old.period_end_time);
    assert_eq!((new.granted_count, new.consumed_count), (1, 1));
    client.ask(settle(&old.lease_id, 4)).await?;
    let in_each = "select granted_units - returned_units from eco_quota_usage order by period_start";
    let in_each: Vec<i64> = sqlx::query_scalar(in_each).fetch_all(&db.pool).await?;
    assert_eq!(in_each, [4, 1]);
    Ok(())
}

/// A client that hears nothing for longer than keys are believed must not use its units any more: so much is told
/// with every answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_changes_are_not_heard_units_are_good_for_ever_less_time() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let proxy = Proxy::before(&db).await?;
    let stale = Config { key_stale_max: Duration::from_secs(3), ..config(proxy.args(&db)?) };
    let server = Server::start_with(stale).await?;
    hear(&db, 1).await?;
    let mut client = Leasing::at(&server).await?;
    let first = client.ask(want(10)).await?;
    assert!((2_000..=3_000).contains(&first.valid_ms), "{first:?}");
    proxy.cut();
    let mut valid = first.valid_ms;
    while valid > 0 {
        let next = client.ask(want(0)).await?.valid_ms;
        assert!(next <= valid.max(first.valid_ms), "{next} after {valid}");
        valid = next;
    }
    let nothing = client.ask(want(1)).await?;
    assert_eq!((nothing.granted_count, nothing.retry_delay_ms), (0, 1000));
    // What it settles meanwhile is settled as soon as that can be.
    client.ask(settle(&first.lease_id, 2)).await?;
    assert_eq!(granted(&db, "eco_a").await?, 10);
    proxy.mend();
    eventually(async || Ok(granted(&db, "eco_a").await? == 2)).await?;
    eventually(async || Ok(client.ask(want(0)).await?.valid_ms > 2_000)).await?;
    Ok(())
}
