//! CheckQuota: exact over replicas, all or nothing, by database time.

use std::collections::HashMap;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures::{StreamExt, future::join_all, stream};
use nexus_core::plan::Plan;
use nexus_proto::{
    common::v1::Plan as PlanPb,
    usage::v1::{CheckQuotaRequest, CheckQuotaResponse, UsageEvent},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_limit_is_admitted_over_two_servers() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Free).await?;
    let clients = [one.client()?, two.client()?];
    let options = service()?;
    let calls = (0..1200).map(|i| {
        let mut client = clients[i % 2].clone();
        let request = CheckQuotaRequest { eco_id: "eco_a".to_owned(), ..CheckQuotaRequest::default() };
        let request = options.request(request);
        async move { client.check_quota(request).await }
    });
    // Few enough that none waits so long for a connection that it is told to come again.
    let answers: Vec<_> = stream::iter(calls).buffer_unordered(32).collect().await;
    let (admitted, over): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    for refusal in &over {
        assert_eq!(refusal.as_ref().err().map(Status::code), Some(Code::ResourceExhausted), "{refusal:?}");
    }
    // Units that one server held while the other waited for them in vain are there for whoever asks.
    let mut admitted = admitted.len();
    eventually(async || {
        admitted += usize::from(check(&two, "eco_a", 1).await.is_ok());
        Ok(admitted >= 1000)
    })
    .await?;
    assert_eq!(admitted, 1000, "{} were refused", over.len());
    refused(check(&one, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let usage = current(&two, "eco_a").await?;
    // Refused calls consumed nothing; nothing was recorded.
    assert_eq!((usage.consumed_count, usage.api_calls_count, usage.remaining_count), (1000, 0, 1000));
    assert_eq!(granted(&db, "eco_a").await?, 1000);
    Ok(())
}

/// The commit is under way when the caller goes away.
#[tokio::test]
async fn a_call_that_was_not_waited_for_and_is_repeated_consumes_once() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    sqlx::raw_sql(
        "create function wait() returns trigger language plpgsql as
         $$ begin perform pg_advisory_xact_lock_shared(42); return null; end $$;
         create constraint trigger wait after insert on eco_quota_leases
         deferrable initially deferred for each row execute function wait();",
    )
    .execute(&db.pool)
    .await?;
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *holder).await?;
    let repeated = || CheckQuotaRequest {
        eco_id: "eco_a".to_owned(),
        request_id: Uuid::from_u128(7).to_string(),
        ..CheckQuotaRequest::default()
    };
    let (mut client, options) = (server.client()?, service()?);
    tokio::select! {
        answer = client.check_quota(options.request(repeated())) => panic!("before the commit: {answer:?}"),
        waited = service_waits(&db) => waited?,
    }
    holder.commit().await?;
    let answer = server.client()?.check_quota(options.request(repeated())).await?.into_inner();
    assert_eq!((answer.consumed_count, current(&server, "eco_a").await?.consumed_count), (1, 1));
    Ok(())
}

/// Who waits for the database, and who waits for these; some could repeat their requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_away_before_it_is_decided_consumes_nothing() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    check(&server, "eco_a", 1).await?;
    let mut locked = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select from eco_quota_usage for update").execute(&mut *locked).await?;
    let (client, options) = (server.client()?, service()?);
    let calls = (0..8).map(|i| {
        let mut client = client.clone();
        let request_id = if i % 2 == 0 { String::new() } else { Uuid::from_u128(i).to_string() };
        let request = CheckQuotaRequest { eco_id: "eco_a".to_owned(), units_count: 120, request_id };
        let request = options.request(request);
        async move { client.check_quota(request).await }
    });
    let all_wait = async {
        service_waits(&db).await?;
        eventually(async || Ok(server.metric("nexus_requests_in_flight").await? == 8)).await
    };
    tokio::select! {
        answers = join_all(calls) => panic!("before the grant: {answers:?}"),
        waited = all_wait => waited?,
    }
    eventually(async || Ok(server.metric("nexus_requests_in_flight").await? == 0)).await?;
    locked.rollback().await?;
    check(&server, "eco_a", 999).await?;
    assert_eq!(current(&server, "eco_a").await?.consumed_count, 1000);
    Ok(())
}

#[tokio::test]
async fn an_admission_says_where_the_account_stands() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    record(&server, UsageEvent { units_count: 100, ..event("eco_a") }).await?;
    let answer = check(&server, "eco_a", 5).await?;
    assert_eq!((answer.limit_count, answer.consumed_count, answer.remaining_count), (1000, 105, 895));
    assert_eq!(answer.plan(), PlanPb::Free);
    let period: (DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(
        "select nexus_period_start(anchor_time, now()), nexus_period_end(anchor_time, now()) from eco_subscriptions",
    )
    .fetch_one(&db.pool)
    .await?;
    assert_eq!(answer.period_start_time, Some(nexus_kit::convert::timestamp(period.0)));
    assert_eq!(answer.period_end_time, Some(nexus_kit::convert::timestamp(period.1)));
    Ok(())
}

#[tokio::test]
async fn units_are_admitted_all_or_none() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    check(&server, "eco_a", 999).await?;
    refused(check(&server, "eco_a", 2).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(check(&server, "eco_a", 1).await?.remaining_count, 0);
    // More than the whole limit, in a period that has no row yet.
    account(&db, "eco_b", Plan::Free).await?;
    refused(check(&server, "eco_b", 1001).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    Ok(())
}

#[tokio::test]
async fn a_refusal_says_all_a_caller_needs() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    record(&server, UsageEvent { units_count: 1000, ..event("eco_a") }).await?;
    let status = refused(check(&server, "eco_a", 1).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let details = status.get_error_details();
    let info: HashMap<String, String> = details.error_info().map(|i| i.metadata.clone()).unwrap_or_default();
    assert_eq!((info["limit"].as_str(), info["current_usage"].as_str()), ("1000", "1000"));
    assert_eq!(info["plan"], "free");
    let end: DateTime<Utc> = info["period_end"].parse()?;
    let start: DateTime<Utc> = info["period_start"].parse()?;
    assert!(start < now() && now() < end);
    let retry = details.retry_info().and_then(|r| r.retry_delay).unwrap_or_default();
    let to_the_end = (end - now()).to_std()?;
    assert!(retry >= to_the_end && retry - to_the_end < std::time::Duration::from_secs(30));
    let links = details.help().map(|h| h.links.clone()).unwrap_or_default();
    assert_eq!(links[0].url, "/dashboard/billing");
    assert_eq!(
        details.quota_failure().map(|q| q.violations[0].subject.clone()),
        Some("account:eco_a".to_owned())
    );
    Ok(())
}

#[tokio::test]
async fn soft_and_unlimited_plans_are_always_admitted() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_pro", Plan::Pro).await?;
    account(&db, "eco_ent", Plan::Enterprise).await?;
    record(&server, UsageEvent { units_count: 100_000, ..event("eco_pro") }).await?;
    let pro = check(&server, "eco_pro", 7).await?;
    assert_eq!((pro.limit_count, pro.remaining_count, pro.consumed_count), (100_000, 0, 100_007));
    let enterprise = check(&server, "eco_ent", 1_000_000).await?;
    assert_eq!((enterprise.limit_count, enterprise.remaining_count), (-1, -1));
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_does_not_grant_its_plan_has_the_free_limits() -> Result<()> {
    let (db, server) = server().await?;
    for (status, limit) in [
        ("trialing", 100_000),
        ("active", 100_000),
        ("past_due", 100_000),
        ("unpaid", 1000),
        ("paused", 1000),
        ("incomplete", 1000),
        ("incomplete_expired", 1000),
        ("canceled", 1000),
    ] {
        let id = format!("eco_{status}");
        account(&db, &id, Plan::Pro).await?;
        sqlx::query("update eco_subscriptions set status = $2 where eco_id = $1")
            .bind(&id)
            .bind(status)
            .execute(&db.pool)
            .await?;
        let answer = check(&server, &id, 1000).await?;
        assert_eq!(answer.limit_count, limit, "{status}");
        assert_eq!(check(&server, &id, 1).await.is_ok(), limit > 1000, "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn unknown_and_closed_accounts_are_refused() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    sqlx::query("update eco_identities set status = 'closed', closed_time = now()").execute(&db.pool).await?;
    refused(check(&server, "eco_a", 1).await, Code::FailedPrecondition, "ACCOUNT_CLOSED");
    refused(check(&server, "eco_nobody", 1).await, Code::NotFound, "ACCOUNT_NOT_FOUND");
    // Not remembered as unknown.
    account(&db, "eco_nobody", Plan::Free).await?;
    check(&server, "eco_nobody", 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    account(&db, "eco_b", Plan::Free).await?;
    let ask = async |eco_id: &str, units_count: i64, request_id: &str| {
        let request =
            CheckQuotaRequest { eco_id: eco_id.to_owned(), units_count, request_id: request_id.to_owned() };
        let answer = server.client()?.check_quota(service()?.request(request)).await;
        anyhow::Ok(answer.map(|r| CheckQuotaResponse { server_time: None, ..r.into_inner() }))
    };
    let id = Uuid::new_v4().to_string();
    let (a, b) = tokio::join!(ask("eco_a", 600, &id), ask("eco_a", 600, &id));
    let first = a??;
    assert_eq!(b??, first);
    assert_eq!(ask("eco_a", 600, &id).await??, first);
    let status = refused(ask("eco_a", 1, &id).await?, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["request_id"]);
    assert_ne!(ask("eco_b", 600, &id).await??.admission, first.admission);
    // A refusal consumes nothing, and a repeat of it is decided anew.
    let other = Uuid::new_v4().to_string();
    refused(ask("eco_a", 600, &other).await?, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(current(&server, "eco_a").await?.consumed_count, 600);
    ask("eco_a", 400, &other).await??;
    assert_eq!(current(&server, "eco_a").await?.consumed_count, 1000);
    Ok(())
}

#[tokio::test]
async fn a_check_names_every_violation() -> Result<()> {
    let (_db, server) = server().await?;
    let request =
        CheckQuotaRequest { eco_id: String::new(), units_count: -1, request_id: "again".to_owned() };
    let result = server.client()?.check_quota(service()?.request(request)).await;
    let status = refused(result, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields(&status), ["eco_id", "units_count", "request_id"]);
    Ok(())
}

#[tokio::test]
async fn test_mode_keys_are_never_limited() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let key = make_key(&server, "eco_a", true).await?.key;
    check(&server, "eco_a", 1000).await?;
    let request = CheckQuotaRequest { units_count: 5, ..CheckQuotaRequest::default() };
    let answer = server.client()?.check_quota(api_key(&key)?.request(request)).await?.into_inner();
    assert_eq!((answer.consumed_count, answer.remaining_count), (1000, 0));
    Ok(())
}
