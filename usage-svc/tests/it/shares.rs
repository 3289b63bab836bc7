//! What one account cannot take from the others: connections of the database, however many of its calls wait there.

use anyhow::Result;
use futures::future::join_all;
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{
    BatchRecordUsageRequest, BatchRecordUsageResponse, CheckQuotaRequest, RotateApiKeyRequest,
    RotateApiKeyResponse, UsageEvent,
};
use nexus_testkit::db::TestDb;
use sqlx::{Postgres, Transaction};
use tonic::{Code, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::support::*;

/// A quarter of the connections that tests give a server.
const AT_WORK: i64 = 2;

type Rotated = Result<RotateApiKeyResponse, Status>;

/// Locks a key's row until the transaction ends.
async fn hold_key(db: &TestDb, key_id: &str) -> Result<Transaction<'static, Postgres>> {
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select from eco_api_keys where key_id = $1 for update")
        .bind(key_id)
        .execute(&mut *holder)
        .await?;
    Ok(holder)
}

/// So many rotations of one key at once.
fn rotations(
    server: &Server,
    options: &CallOptions,
    key_id: &str,
    count: usize,
) -> Result<impl Future<Output = Vec<Rotated>> + use<>> {
    let client = server.client()?;
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let request = RotateApiKeyRequest { key_id: key_id.to_owned(), ..RotateApiKeyRequest::default() };
            let (mut client, request) = (client.clone(), options.request(request));
            async move { client.rotate_api_key(request).await.map(|answer| answer.into_inner()) }
        })
        .collect();
    Ok(join_all(calls))
}

/// Returns once so many calls, at least, are in flight.
async fn in_flight(server: &Server, calls: i64) -> Result<()> {
    eventually(async || Ok(server.metric("nexus_requests_in_flight").await? >= calls)).await
}

/// Sessions that wait for a lock.
async fn waiting(db: &TestDb) -> Result<i64> {
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    Ok(sqlx::query_scalar(waits).fetch_one(&db.pool).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_that_wait_for_one_key_leave_the_connections_to_other_accounts() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let key_id = key_id(&make_key(&server, "eco_a", false).await?);
    let holder = hold_key(&db, &key_id).await?;
    let mut rotations = Box::pin(rotations(&server, &user("eco_a")?, &key_id, 100)?);
    let others = async {
        in_flight(&server, 50).await?;
        eventually(async || Ok(waiting(&db).await? == AT_WORK)).await?;
        check(&server, "eco_b", 1).await?;
        make_key(&server, "eco_b", false).await?;
        assert!(waiting(&db).await? <= AT_WORK);
        anyhow::Ok(())
    };
    tokio::select! {
        early = &mut rotations => anyhow::bail!("their key is locked: {early:?}"),
        others = others => others?,
    }
    holder.commit().await?;
    // As many as a key may have secrets in grace; the rest is told so in its turn.
    let rotated = rotations.await.into_iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(rotated, 4);
    Ok(())
}

/// What they began waits on in the database, each with its connection: as if they were there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_whose_callers_went_away_are_no_room_for_more() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let key_id = key_id(&make_key(&server, "eco_a", false).await?);
    let holder = hold_key(&db, &key_id).await?;
    for _ in 0..4 {
        let calls = rotations(&server, &user("eco_a")?, &key_id, 20)?;
        let are_there = async {
            in_flight(&server, 20).await?;
            eventually(async || Ok(waiting(&db).await? >= AT_WORK)).await?;
            for _ in 0..50 {
                assert!(waiting(&db).await? <= AT_WORK, "no others come");
            }
            anyhow::Ok(())
        };
        tokio::select! {
            early = calls => anyhow::bail!("their key is locked: {early:?}"),
            there = are_there => there?,
        }
        // They are gone.
        eventually(async || Ok(server.metric("nexus_requests_in_flight").await? == 0)).await?;
    }
    assert!(waiting(&db).await? <= AT_WORK);
    check(&server, "eco_b", 1).await?;
    holder.commit().await?;
    Ok(())
}

/// A check with such a key reads where the account stands, every time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_in_test_mode_leave_the_connections_to_other_accounts() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let (testing, other) =
        (make_key(&server, "eco_a", true).await?.key, make_key(&server, "eco_b", false).await?.key);
    let (client, options) = (server.client()?, api_key(&testing)?);
    let checks = join_all((0..100).map(|_| {
        let (mut client, request) = (client.clone(), options.request(CheckQuotaRequest::default()));
        async move { client.check_quota(request).await }
    }));
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("lock table eco_usage_adjustments in access exclusive mode").execute(&mut *holder).await?;
    let others = async {
        in_flight(&server, 50).await?;
        eventually(async || Ok(waiting(&db).await? >= 1)).await?;
        verify(&server, &other).await??;
        make_key(&server, "eco_b", false).await?;
        anyhow::Ok(())
    };
    let mut checks = Box::pin(checks);
    tokio::select! {
        early = &mut checks => anyhow::bail!("what they read is locked: {early:?}"),
        others = others => others?,
    }
    holder.commit().await?;
    let answered = checks.await.into_iter().filter(|answer| answer.is_ok()).count();
    assert!(answered > 90, "{answered}");
    Ok(())
}

/// Keys that are made up cost nobody an account: all that wait are read at once, over one connection, and those that are good
/// among them are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_made_up_leave_connections_and_turns_to_others() -> Result<()> {
    const MADE_UP: i64 = 900;
    let (db, server) = server().await?;
    account(&db, "eco_b", Plan::Pro).await?;
    // Made before this server would hear of it, and not seen since.
    let good = make_key(&server, "eco_b", false).await?.key;
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("lock table eco_api_keys in access exclusive mode").execute(&mut *holder).await?;
    let client = server.client()?;
    let calls = (0..MADE_UP).map(|number| {
        let key = api_key(&format!("eco_api_{number:022}.{}", "s".repeat(22)));
        let mut client = client.clone();
        async move { anyhow::Ok(client.check_quota(key?.request(CheckQuotaRequest::default())).await.err()) }
    });
    let mut strangers = Box::pin(join_all(calls));
    let others = async {
        in_flight(&server, MADE_UP).await?;
        eventually(async || Ok(waiting(&db).await? == 1)).await?;
        check(&server, "eco_b", 1).await?;
        assert_eq!(waiting(&db).await?, 1);
        anyhow::Ok(())
    };
    tokio::select! {
        early = &mut strangers => anyhow::bail!("keys cannot be read: {early:?}"),
        others = others => others?,
    }
    let mut verified = Box::pin(verify(&server, &good));
    tokio::select! {
        early = &mut verified => anyhow::bail!("the key cannot be read: {early:?}"),
        there = in_flight(&server, MADE_UP + 1) => there?,
    }
    holder.commit().await?;
    assert_eq!(verified.await??.eco_id, "eco_b");
    for refused in strangers.await {
        assert_eq!(refused?.map(|status| status.code()), Some(Code::Unauthenticated));
    }
    Ok(())
}

/// Noting that a key was used is nothing that a caller waits for, nor does it take the connections of those who do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_whose_use_cannot_be_noted_leave_the_connections_to_others() -> Result<()> {
    let (db, server) = server().await?;
    for eco_id in ["eco_a", "eco_b"] {
        account(&db, eco_id, Plan::Pro).await?;
    }
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(make_key(&server, "eco_a", false).await?.key);
    }
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    // As the making of an index has it: it is read, and not written.
    sqlx::query("lock table eco_api_keys in share mode").execute(&mut *holder).await?;
    for key in &keys {
        assert_eq!(verify(&server, key).await??.eco_id, "eco_a");
    }
    eventually(async || Ok(waiting(&db).await? == 1)).await?;
    for _ in 0..20 {
        check(&server, "eco_b", 1).await?;
        assert!(waiting(&db).await? <= 1);
    }
    holder.commit().await?;
    let noted = "select count(*) = 20 from eco_api_keys where last_used_time is not null";
    eventually(async || Ok(sqlx::query_scalar(noted).fetch_one(&db.pool).await?)).await
}

/// An answer that tells what is wrong with ten thousand events is larger than they are. Of such answers, an account may
/// leave some 16 MiB untaken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_takes_no_answers_is_given_no_more_and_others_are() -> Result<()> {
    let (db, server) = server().await?;
    for eco_id in ["eco_a", "eco_b"] {
        account(&db, eco_id, Plan::Pro).await?;
    }
    let (key, other) = (make_key(&server, "eco_a", false).await?, make_key(&server, "eco_b", false).await?);
    let batch = || BatchRecordUsageRequest { events: vec![UsageEvent::default(); 10_000] };
    // All but their first byte stays at the server.
    let slow = Endpoint::from_shared(format!("http://{}", server.address))?.initial_stream_window_size(1);
    let slow = slow.connect_lazy();
    let mut untaken = Vec::new();
    for _ in 0..11 {
        let codec = ProstCodec::<BatchRecordUsageRequest, BatchRecordUsageResponse>::default();
        let path = PathAndQuery::from_static("/nexus.usage.v1.UsageService/BatchRecordUsage");
        let mut client = Grpc::new(slow.clone());
        client.ready().await?;
        untaken.push(client.server_streaming(api_key(&key.key)?.request(batch()), path, codec).await?);
    }
    let record = async |key: &str| {
        let mut client = server.client()?;
        anyhow::Ok(client.batch_record_usage(api_key(key)?.request(batch())).await)
    };
    let refused = async || {
        let refused = record(&key.key).await?;
        Ok(refused.is_err_and(|status| status.message() == "too many answers of this account are not taken"))
    };
    eventually(refused).await?;
    assert_eq!(record(&other.key).await??.into_inner().rejected_count, 10_000);
    drop(untaken);
    eventually(async || Ok(record(&key.key).await?.is_ok())).await
}
