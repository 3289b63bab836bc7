//! Who may call what, and what the database lets the service do.

use anyhow::{Context, Result};
use envoy_types::pb::envoy::service::ratelimit::v3::{
    RateLimitRequest, rate_limit_service_client::RateLimitServiceClient,
};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{
    auth::Scope,
    db::{self, Role},
};
use nexus_proto::usage::v1::*;
use nexus_testkit::settings;
use tonic::{Code, Status};

use crate::support::*;

/// The results of the calls that meter: RecordUsage, BatchRecordUsage, CheckQuota.
async fn metering(server: &Server, options: &CallOptions, eco_id: &str) -> Result<[Result<(), Status>; 3]> {
    let mut client = server.client()?;
    let one = RecordUsageRequest { event: Some(event(eco_id)) };
    let batch = BatchRecordUsageRequest { events: vec![event(eco_id)] };
    let check = CheckQuotaRequest { eco_id: eco_id.to_owned(), ..CheckQuotaRequest::default() };
    Ok([
        client.record_usage(options.request(one)).await.map(|_| ()),
        client.batch_record_usage(options.request(batch)).await.map(|_| ()),
        client.check_quota(options.request(check)).await.map(|_| ()),
    ])
}

#[tokio::test]
async fn users_never_meter_and_services_need_the_scope() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, settings::ADMIN, Plan::Pro).await?;
    for (options, eco_id) in [
        (user("eco_a")?, "eco_a"),
        (user(settings::ADMIN)?, settings::ADMIN),
        (with_scopes(&[Scope::AccountsWrite, Scope::BillingRun])?, "eco_a"),
    ] {
        for result in metering(&server, &options, eco_id).await? {
            refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
        }
    }
    let [record, batch, check] = metering(&server, &with_scopes(&[Scope::UsageWrite])?, "eco_a").await?;
    record?;
    batch?;
    refused(check, Code::PermissionDenied, "PERMISSION_DENIED");
    let [record, batch, check] = metering(&server, &with_scopes(&[Scope::UsageCheck])?, "eco_a").await?;
    refused(record, Code::PermissionDenied, "PERMISSION_DENIED");
    refused(batch, Code::PermissionDenied, "PERMISSION_DENIED");
    check?;
    let verify = VerifyApiKeyRequest { key: "x".to_owned() };
    let result = server.client()?.verify_api_key(with_scopes(&[Scope::UsageWrite])?.request(verify)).await;
    refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    let import = RegisterImportRequest::default();
    let result = server.client()?.register_import(with_scopes(&[Scope::UsageCheck])?.request(import)).await;
    refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(2));
    Ok(())
}

#[tokio::test]
async fn an_api_key_reaches_its_own_account_only() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    let key = api_key(&made.key)?;
    for result in
        metering(&server, &key, "eco_a").await?.into_iter().chain(metering(&server, &key, "").await?)
    {
        result?;
    }
    for result in metering(&server, &key, "eco_b").await? {
        refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    assert_eq!(sums(&db.pool, "eco_a").await?, plain(4));
    assert_eq!(sums(&db.pool, "eco_b").await?, plain(0));
    let stored: Vec<String> =
        sqlx::query_scalar("select distinct api_key_id from eco_api_usage").fetch_all(&db.pool).await?;
    assert_eq!(stored, [made.api_key.context("the answer has the key")?.key_id]);

    let usage = |eco_id: &str| GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
    let mut client = server.client()?;
    assert_eq!(client.get_current_usage(key.request(usage(""))).await?.into_inner().api_calls_count, 4);
    let other = client.get_current_usage(key.request(usage("eco_b"))).await;
    refused(other, Code::PermissionDenied, "PERMISSION_DENIED");
    sqlx::query("update eco_api_keys set status = 'revoked'").execute(&db.pool).await?;
    for result in metering(&server, &key, "eco_a").await? {
        refused(result, Code::Unauthenticated, "INVALID_API_KEY");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_key_with_scopes_may_do_only_those() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let request = CreateApiKeyRequest {
        name: "writes".to_owned(),
        scopes: vec!["usage.write".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let made = server.client()?.create_api_key(user("eco_a")?.request(request)).await?.into_inner();
    let [record, batch, check] = metering(&server, &api_key(&made.key)?, "eco_a").await?;
    record?;
    batch?;
    refused(check, Code::PermissionDenied, "PERMISSION_DENIED");
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_yet_says_so() -> Result<()> {
    let (_db, server) = server().await?;
    let mut client = server.client()?;
    let options = with_scopes(&[Scope::Admin])?;
    let stream = tokio_stream::iter([StreamUsageRequest::default()]);
    let lease = tokio_stream::iter([LeaseQuotaRequest::default()]);
    let results = [
        client.stream_usage(options.request(stream)).await.map(|_| ()),
        client.lease_quota(options.request(lease)).await.map(|_| ()),
        client.list_api_keys(options.request(ListApiKeysRequest::default())).await.map(|_| ()),
        client.revoke_api_key(options.request(RevokeApiKeyRequest::default())).await.map(|_| ()),
        client.rotate_api_key(options.request(RotateApiKeyRequest::default())).await.map(|_| ()),
        RateLimitServiceClient::new(server.channel()?)
            .should_rate_limit(options.request(RateLimitRequest::default()))
            .await
            .map(|_| ()),
    ];
    for result in results {
        refused(result, Code::Unimplemented, "NOT_IMPLEMENTED");
    }
    Ok(())
}

#[tokio::test]
async fn the_database_lets_the_service_write_only_its_own_tables() -> Result<()> {
    let (db, _server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let pool = db::pool(&db.args(), Role::Usage)?;
    for statement in [
        "insert into eco_identities (eco_id) values ('eco_x')",
        "update eco_subscriptions set plan = 'enterprise'",
        "update eco_plans set included_units = 0",
        "update eco_usage_records set billed_micros = 0",
        "select * from eco_overage_charges",
        "select * from eco_stripe_events",
        "update eco_api_usage set units_count = 0",
        "delete from eco_api_usage",
        "drop table eco_api_usage",
    ] {
        let error = sqlx::query(statement).execute(&pool).await.expect_err(statement);
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    Ok(())
}
