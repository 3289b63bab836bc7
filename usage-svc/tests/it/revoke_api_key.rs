//! RevokeApiKey.

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::usage::v1::{
    ApiKey, ApiKeyStatus, BatchRecordUsageRequest, BatchRecordUsageResponse, CheckQuotaRequest,
    CheckQuotaResponse, GetCurrentUsageRequest, GetCurrentUsageResponse, LeaseQuotaRequest,
    RecordUsageRequest, RecordUsageResponse, RevokeApiKeyRequest,
};
use nexus_testkit::{db::TestDb, settings::ADMIN};
use sqlx::{Postgres, Transaction};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;
use uuid::Uuid;

use crate::support::*;

async fn revoke(server: &Server, options: CallOptions, key_id: &str) -> Result<Result<ApiKey, Status>> {
    let request = options.request(RevokeApiKeyRequest { key_id: key_id.to_owned() });
    match server.client()?.revoke_api_key(request).await {
        Ok(answer) => Ok(Ok(answer.into_inner().api_key.context("the answer has the key")?)),
        Err(status) => Ok(Err(status)),
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_at_every_replica_once_it_is_heard() -> Result<()> {
    let (db, here) = server().await?;
    let there = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let (made, other) = (make_key(&here, "eco_a", false).await?, make_key(&here, "eco_a", false).await?);
    for server in [&here, &there] {
        verify(server, &made.key).await??;
    }
    assert_eq!(revoke(&here, user("eco_a")?, &key_id(&made)).await??.status(), ApiKeyStatus::Revoked);
    refused(verify(&here, &made.key).await?, Code::Unauthenticated, "INVALID_API_KEY");
    is_refused(&there, &made.key).await?;
    for server in [&here, &there] {
        let mut client = server.client()?;
        let key = api_key(&made.key)?;
        let record = RecordUsageRequest { event: Some(event("eco_a")) };
        let recorded = client.record_usage(key.request(record)).await;
        refused(recorded, Code::Unauthenticated, "INVALID_API_KEY");
        let read = client.get_current_usage(key.request(GetCurrentUsageRequest::default())).await;
        refused(read, Code::Unauthenticated, "INVALID_API_KEY");
        verify(server, &other.key).await??;
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(0));
    Ok(())
}

/// Calls with a key whose message is yet to come.
struct Held<A> {
    message: oneshot::Sender<A>,
    answer: JoinHandle<Result<(), Status>>,
}

/// Sends the headers of a call alone.
fn hold<A: prost::Message + Default + 'static, B: prost::Message + Default + 'static>(
    server: &Server,
    key: &CallOptions,
    rpc: &str,
) -> Result<Held<A>> {
    let (message, comes) = oneshot::channel();
    let path = PathAndQuery::try_from(format!("/nexus.usage.v1.UsageService/{rpc}"))?;
    let channel = Endpoint::from_shared(format!("http://{}", server.address))?.connect_lazy();
    let request = key.request(stream::once(comes).filter_map(async |message| message.ok()));
    let answer = tokio::spawn(async move {
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = client.client_streaming(request, path, ProstCodec::<A, B>::default()).await;
        answer.map(|_| ())
    });
    Ok(Held { message, answer })
}

impl<A: std::fmt::Debug> Held<A> {
    async fn refused_for(self, message: A) -> Result<()> {
        self.message.send(message).map_err(|message| anyhow::anyhow!("{message:?} is not waited for"))?;
        refused(self.answer.await?, Code::Unauthenticated, "INVALID_API_KEY");
        Ok(())
    }
}

/// The key was good when the headers came, and is not when the message does.
#[tokio::test]
async fn a_call_whose_message_comes_after_the_revocation_is_refused() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    verify(&server, &made.key).await??;
    let key = api_key(&made.key)?;
    let check = hold::<CheckQuotaRequest, CheckQuotaResponse>(&server, &key, "CheckQuota")?;
    let record = hold::<RecordUsageRequest, RecordUsageResponse>(&server, &key, "RecordUsage")?;
    let batch = hold::<BatchRecordUsageRequest, BatchRecordUsageResponse>(&server, &key, "BatchRecordUsage")?;
    let current = hold::<GetCurrentUsageRequest, GetCurrentUsageResponse>(&server, &key, "GetCurrentUsage")?;
    eventually(async || Ok(server.metric("nexus_requests_in_flight").await? == 4)).await?;
    revoke(&server, user("eco_a")?, &key_id(&made)).await??;
    check.refused_for(CheckQuotaRequest::default()).await?;
    record.refused_for(RecordUsageRequest { event: Some(event("eco_a")) }).await?;
    batch.refused_for(BatchRecordUsageRequest { events: vec![event("eco_a")] }).await?;
    current.refused_for(GetCurrentUsageRequest::default()).await?;
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(0));
    Ok(())
}

/// It waits for units, and nothing is consumed by it.
#[tokio::test]
async fn a_check_that_waits_while_its_key_is_revoked_is_refused() -> Result<()> {
    for request_id in [String::new(), Uuid::from_u128(1).to_string()] {
        let (db, server) = server().await?;
        account(&db, "eco_a", Plan::Free).await?;
        let made = make_key(&server, "eco_a", false).await?;
        verify(&server, &made.key).await??;
        check(&server, "eco_a", 1).await?;
        let locked = hold_quota(&db).await?;
        let (mut client, key) = (server.client()?, api_key(&made.key)?);
        let request = CheckQuotaRequest { units_count: 900, request_id, ..Default::default() };
        let waits = tokio::spawn(async move { client.check_quota(key.request(request)).await });
        service_waits(&db).await?;
        revoke(&server, user("eco_a")?, &key_id(&made)).await??;
        locked.commit().await?;
        refused(waits.await?, Code::Unauthenticated, "INVALID_API_KEY");
        check(&server, "eco_a", 999).await?;
        assert_eq!(current(&server, "eco_a").await?.consumed_count, 1000);
    }
    Ok(())
}

/// The same of units that are to be handed out.
#[tokio::test]
async fn a_lease_that_waits_while_its_key_is_revoked_is_not_granted() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let made = make_key(&server, "eco_a", false).await?;
    verify(&server, &made.key).await??;
    check(&server, "eco_a", 1).await?;
    let locked = hold_quota(&db).await?;
    let (wishes, stream) = mpsc::channel(1);
    let first = LeaseQuotaRequest {
        client_id: Uuid::from_u128(1).to_string(),
        want_count: 900,
        ..Default::default()
    };
    wishes.send(first).await?;
    let key = api_key(&made.key)?;
    let mut client = server.client()?;
    let call = tokio::spawn(async move {
        let mut answers = client.lease_quota(key.request(ReceiverStream::new(stream))).await?.into_inner();
        answers.message().await
    });
    service_waits(&db).await?;
    revoke(&server, user("eco_a")?, &key_id(&made)).await??;
    locked.commit().await?;
    refused(call.await?, Code::Unauthenticated, "INVALID_API_KEY");
    check(&server, "eco_a", 999).await?;
    assert_eq!(current(&server, "eco_a").await?.consumed_count, 1000);
    Ok(())
}

/// Grants wait until the transaction ends.
async fn hold_quota(db: &TestDb) -> Result<Transaction<'static, Postgres>> {
    let mut locked = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select from eco_quota_usage for update").execute(&mut *locked).await?;
    Ok(locked)
}

#[tokio::test]
async fn a_repeated_revocation_changes_nothing() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let id = key_id(&make_key(&server, "eco_a", false).await?);
    let first = revoke(&server, user("eco_a")?, &id).await??;
    let time = "select revoked_time::text from eco_api_keys";
    let revoked: String = sqlx::query_scalar(time).fetch_one(&db.pool).await?;
    assert_eq!(revoke(&server, user("eco_a")?, &id).await??, first);
    assert_eq!(sqlx::query_scalar::<_, String>(time).fetch_one(&db.pool).await?, revoked);
    Ok(())
}

#[tokio::test]
async fn a_repeated_revocation_waits_for_nobody() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let id = key_id(&make_key(&server, "eco_a", false).await?);
    let first = revoke(&server, user("eco_a")?, &id).await??;
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select from eco_api_keys where key_id = $1 for update")
        .bind(&id)
        .execute(&mut *holder)
        .await?;
    assert_eq!(revoke(&server, user("eco_a")?, &id).await??, first);
    refused(revoke(&server, user("eco_b")?, &id).await?, Code::NotFound, "API_KEY_NOT_FOUND");
    Ok(())
}

/// Another account's key and one that is not there answer alike, to the letter.
#[tokio::test]
async fn a_user_revokes_keys_of_the_own_account_only() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let unknown = format!("eco_api_{}", "0".repeat(22));
    let foreign = revoke(&server, user("eco_b")?, &key_id(&made)).await?;
    let missing = revoke(&server, user("eco_b")?, &unknown).await?;
    let foreign = refused(foreign, Code::NotFound, "API_KEY_NOT_FOUND");
    let missing = refused(missing, Code::NotFound, "API_KEY_NOT_FOUND");
    assert_eq!((foreign.message(), foreign.details()), (missing.message(), missing.details()));
    for options in [service()?, api_key(&made.key)?] {
        let result = revoke(&server, options, &key_id(&made)).await?;
        refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    let status =
        refused(revoke(&server, user("eco_a")?, &made.key).await?, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["key_id"]);
    verify(&server, &made.key).await??;

    for options in [user(ADMIN)?, with_scopes(&[Scope::AccountsWrite])?] {
        let made = make_key(&server, "eco_a", false).await?;
        revoke(&server, options.clone(), &key_id(&made)).await??;
        refused(verify(&server, &made.key).await?, Code::Unauthenticated, "INVALID_API_KEY");
        refused(revoke(&server, options, &unknown).await?, Code::NotFound, "API_KEY_NOT_FOUND");
    }
    Ok(())
}
