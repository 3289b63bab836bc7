//! Envoy's ShouldRateLimit.

use std::collections::HashSet;

use anyhow::{Context, Result};
use envoy_types::pb::{
    envoy::{
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code as Verdict, DescriptorStatus, rate_limit::Unit},
            rate_limit_service_client::RateLimitServiceClient,
        },
    },
    google::protobuf::UInt64Value,
};
use futures::{StreamExt, TryStreamExt, stream};
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::usage::v1::UsageEvent;
use nexus_testkit::db::TestDb;
use tonic::{Code, Status, codec::CompressionEncoding};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{spool::health_of, support::*};

fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entries =
        entries.iter().map(|(key, value)| Entry { key: (*key).to_owned(), value: (*value).to_owned() });
    RateLimitDescriptor { entries: entries.collect(), ..RateLimitDescriptor::default() }
}

pub(crate) fn account_of(eco_id: &str) -> RateLimitDescriptor {
    descriptor(&[("account", eco_id)])
}

fn about(descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: "any".to_owned(), descriptors, hits_addend: 0 }
}

async fn ask(server: &Server, request: RateLimitRequest) -> Result<Result<RateLimitResponse, Status>> {
    let mut client = RateLimitServiceClient::new(server.channel()?);
    let request = with_scopes(&[Scope::UsageCheck])?.request(request);
    Ok(client.should_rate_limit(request).await.map(tonic::Response::into_inner))
}

/// The verdict, and limit, units left and verdict of each descriptor.
pub(crate) type Seen = (Verdict, Vec<(u32, u32, Verdict)>);

fn seen(response: &RateLimitResponse) -> Seen {
    let statuses = response.statuses.iter().map(|s| {
        (s.current_limit.as_ref().map_or(u32::MAX, |l| l.requests_per_unit), s.limit_remaining, s.code())
    });
    (response.overall_code(), statuses.collect())
}

pub(crate) async fn verdict(server: &Server, descriptors: Vec<RateLimitDescriptor>) -> Result<Seen> {
    Ok(seen(&ask(server, about(descriptors)).await??))
}

async fn consumed(server: &Server, eco_id: &str) -> Result<i64> {
    Ok(current(server, eco_id).await?.consumed_count)
}

/// What the client is told in headers.
fn told(response: &RateLimitResponse) -> Vec<(&str, &str)> {
    response.response_headers_to_add.iter().map(|h| (h.key.as_str(), h.value.as_str())).collect()
}

const NONE: (u32, u32, Verdict) = (0, 0, Verdict::OverLimit);

#[tokio::test]
async fn it_has_a_health_and_takes_compressed_requests_as_every_server_does() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let name = "envoy.service.ratelimit.v3.RateLimitService";
    eventually(async || Ok(health_of(&server, name).await? == ServingStatus::Serving as i32)).await?;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let client = RateLimitServiceClient::new(server.channel()?);
        let mut client = client.send_compressed(encoding).accept_compressed(encoding);
        let request = with_scopes(&[Scope::UsageCheck])?.request(about(vec![account_of("eco_a")]));
        assert_eq!(client.should_rate_limit(request).await?.into_inner().overall_code(), Verdict::Ok);
    }
    Ok(())
}

#[tokio::test]
async fn an_admitted_call_is_told_all_and_is_consumed_once() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let response = ask(&server, about(vec![account_of("eco_a")])).await??;
    let [header] = response.request_headers_to_add.as_slice() else {
        anyhow::bail!("one header: {:?}", response.request_headers_to_add)
    };
    assert_eq!(header.key, "x-nexus-admission");
    let told = told(&response);
    assert_eq!(told.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["ratelimit-policy", "ratelimit"]);
    assert!(told[0].1.starts_with(r#""free-monthly";q=1000;w="#), "{told:?}");
    assert!(told[1].1.starts_with(r#""free-monthly";r=999;t="#), "{told:?}");
    let [
        DescriptorStatus {
            code,
            current_limit: Some(limit),
            limit_remaining,
            duration_until_reset: Some(reset),
            ..
        },
    ] = response.statuses.as_slice()
    else {
        anyhow::bail!("every field is filled: {:?}", response.statuses)
    };
    assert_eq!((*code, *limit_remaining), (Verdict::Ok.into(), 999));
    assert_eq!((limit.name.as_str(), limit.requests_per_unit, limit.unit()), ("free", 1000, Unit::Month));
    // Its period began ten days ago.
    assert!((17 * 86_400..=21 * 86_400).contains(&reset.seconds), "{reset:?}");
    assert_eq!((response.overall_code(), consumed(&server, "eco_a").await?), (Verdict::Ok, 1));

    record(&server, UsageEvent { admission: header.value.clone(), ..event("eco_a") }).await?;
    assert_eq!(consumed(&server, "eco_a").await?, 1, "it was consumed when it was admitted");
    record(&server, event("eco_a")).await?;
    assert_eq!(consumed(&server, "eco_a").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_is_exact_over_two_servers() -> Result<()> {
    let (db, one) = server().await?;
    let two = Server::start(db.args()).await?;
    account(&db, "eco_a", Plan::Free).await?;
    let asked = (0..1100).map(|i| {
        let server = if i % 2 == 0 { &one } else { &two };
        verdict(server, vec![account_of("eco_a")])
    });
    let answers: Vec<Seen> = stream::iter(asked).buffer_unordered(32).try_collect().await?;
    let mut admitted = answers.iter().filter(|(verdict, _)| *verdict == Verdict::Ok).count();
    // Units that one server held while the other waited for them in vain are there for whoever asks.
    eventually(async || {
        let (verdict, _) = verdict(&two, vec![account_of("eco_a")]).await?;
        admitted += usize::from(verdict == Verdict::Ok);
        Ok(admitted >= 1000)
    })
    .await?;
    assert_eq!(admitted, 1000);

    let mut response = RateLimitResponse::default();
    // Once it knows that the other holds nothing any more: before, it says to come back in a moment.
    eventually(async || {
        response = ask(&one, about(vec![account_of("eco_a")])).await??;
        let after = told(&response).last().and_then(|(_, seconds)| seconds.parse::<u64>().ok());
        Ok(after.is_some_and(|seconds| seconds > 60))
    })
    .await?;
    assert_eq!(seen(&response), (Verdict::OverLimit, vec![(1000, 0, Verdict::OverLimit)]));
    assert!(response.request_headers_to_add.is_empty());
    let [_, (_, rest), (key, after)] = told(&response)[..] else { anyhow::bail!("three headers") };
    assert!(rest.starts_with(r#""free-monthly";r=0;t="#), "{rest}");
    assert_eq!(key, "retry-after");
    // The reset is weeks away, and clients are spread over a minute.
    let resets: u64 = rest.rsplit_once("t=").context("a reset")?.1.parse()?;
    assert!((resets - 1..=resets + 61).contains(&after.parse()?), "{after} for a reset in {resets} s");
    let afters = (0..8).map(|_| ask(&one, about(vec![account_of("eco_a")])));
    let afters: Vec<_> =
        futures::future::try_join_all(afters).await?.into_iter().collect::<Result<_, _>>()?;
    let distinct: HashSet<_> = afters.iter().map(|response| told(response)[2].1).collect();
    assert!(distinct.len() > 1, "{distinct:?}");
    Ok(())
}

#[tokio::test]
async fn keys_open_their_own_account_and_what_opens_none_is_over_a_limit_of_0() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    account(&db, "eco_b", Plan::Free).await?;
    account(&db, "eco_gone", Plan::Free).await?;
    close(&db, "eco_gone").await?;
    let made = make_key(&server, "eco_a", false).await?;
    let test_key = make_key(&server, "eco_a", true).await?.key;
    let passes = (Verdict::Ok, vec![(1000, 999, Verdict::Ok)]);
    assert_eq!(verdict(&server, vec![descriptor(&[("api_key", &made.key), ("path", "/x")])]).await?, passes);

    let refused = (Verdict::OverLimit, vec![NONE]);
    for entry in [
        ("account", "eco_nobody"),
        ("account", "no id"),
        ("account", "eco_gone"),
        ("api_key", &key_id(&made)),
        ("api_key", &format!("{}x", made.key)),
        ("api_key", ""),
    ] {
        assert_eq!(verdict(&server, vec![descriptor(&[entry])]).await?, refused, "{entry:?}");
    }
    let with_other = descriptor(&[("account", "eco_b"), ("api_key", &made.key)]);
    assert_eq!(verdict(&server, vec![with_other]).await?, refused);
    // Envoy appends its own entries to what a request may have brought.
    let twice = descriptor(&[("account", "eco_b"), ("account", "eco_a")]);
    assert_eq!(verdict(&server, vec![twice]).await?, (Verdict::Ok, vec![(1000, 998, Verdict::Ok)]));

    let unlimited = (Verdict::Ok, vec![(u32::MAX, u32::MAX, Verdict::Ok)]);
    for nobody in [descriptor(&[("path", "/x")]), descriptor(&[]), descriptor(&[("api_key", &test_key)])] {
        assert_eq!(verdict(&server, vec![nobody]).await?, unlimited);
    }
    assert_eq!((consumed(&server, "eco_a").await?, consumed(&server, "eco_b").await?), (2, 0));
    Ok(())
}

#[tokio::test]
async fn all_descriptors_are_admitted_or_none() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_free", Plan::Free).await?;
    account(&db, "eco_pro", Plan::Pro).await?;
    let both = || vec![account_of("eco_free"), account_of("eco_pro")];
    let response = ask(&server, about(both())).await??;
    let passes = |left| (1000, left, Verdict::Ok);
    assert_eq!(seen(&response), (Verdict::Ok, vec![passes(999), (100_000, 99_999, Verdict::Ok)]));
    let whose: Vec<_> =
        response.request_headers_to_add.iter().filter_map(|header| header.value.split_once(';')).collect();
    let [(free, "account=eco_free"), (pro, "account=eco_pro")] = whose[..] else {
        anyhow::bail!("an admission for each account: {response:?}")
    };
    for (eco_id, admission) in [("eco_free", free), ("eco_pro", pro)] {
        record(&server, UsageEvent { admission: admission.to_owned(), ..event(eco_id) }).await?;
        assert_eq!(consumed(&server, eco_id).await?, 1, "{eco_id}: it was consumed when it was admitted");
    }
    assert!(told(&response)[1].1.starts_with(r#""free-monthly";r=999;"#), "of the one with the least left");
    // One call, however often it names its account.
    let twice = vec![account_of("eco_free"), account_of("eco_free")];
    let response = ask(&server, about(twice)).await??;
    assert_eq!(seen(&response), (Verdict::Ok, vec![passes(998), passes(998)]));
    assert_eq!(response.request_headers_to_add.len(), 1);

    // Of accounts in either order, one does not pass.
    ask(&server, RateLimitRequest { hits_addend: 998, ..about(vec![account_of("eco_free")]) }).await??;
    let over = |left| (Verdict::OverLimit, left);
    let unchanged = (100_000, 99_999, Verdict::Ok);
    assert_eq!(verdict(&server, both()).await?, over(vec![(1000, 0, Verdict::OverLimit), unchanged]));
    account(&db, "eco_z", Plan::Free).await?;
    let refused = vec![account_of("eco_pro"), account_of("eco_z"), account_of("eco_zz")];
    assert_eq!(verdict(&server, refused).await?, over(vec![unchanged, (1000, 1000, Verdict::Ok), NONE]));
    for (eco_id, units) in [("eco_free", 1000), ("eco_pro", 1), ("eco_z", 0)] {
        assert_eq!(consumed(&server, eco_id).await?, units, "{eco_id}");
    }
    Ok(())
}

#[tokio::test]
async fn hits_are_units_and_limits_fit_into_32_bits() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let hits = |hits_addend| RateLimitRequest { hits_addend, ..about(vec![account_of("eco_a")]) };
    assert_eq!(seen(&ask(&server, hits(40)).await??).1, [(1000, 960, Verdict::Ok)]);
    let mut own = hits(40);
    own.descriptors[0].hits_addend = Some(UInt64Value { value: 10 });
    assert_eq!(seen(&ask(&server, own).await??).1, [(1000, 950, Verdict::Ok)]);
    assert_eq!(seen(&ask(&server, hits(951)).await??).1, [(1000, 950, Verdict::OverLimit)], "all or none");

    account(&db, "eco_big", Plan::Enterprise).await?;
    let response = ask(&server, about(vec![account_of("eco_big")])).await??;
    assert_eq!(seen(&response).1, [(u32::MAX, u32::MAX, Verdict::Ok)]);
    let [(_, policy)] = told(&response)[..] else { anyhow::bail!("the policy alone") };
    assert!(policy.starts_with(r#""enterprise-monthly";w="#), "{policy}");
    set_included(&db, 5_000_000_000).await?;
    account(&db, "eco_large", Plan::Pro).await?;
    assert_eq!(verdict(&server, vec![account_of("eco_large")]).await?.1, [(u32::MAX, u32::MAX, Verdict::Ok)]);
    Ok(())
}

/// An error is what a proxy may be told to let pass.
#[tokio::test]
async fn more_hits_than_a_call_may_have_are_over_the_limit_of_any_plan() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Enterprise).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let most = RateLimitRequest { hits_addend: 1_000_000, ..about(vec![account_of("eco_a")]) };
    assert_eq!(seen(&ask(&server, most.clone()).await??).0, Verdict::Ok);
    let over = (1_000_000, 0, Verdict::OverLimit);
    let more = RateLimitRequest { hits_addend: 1_000_001, ..most };
    assert_eq!(seen(&ask(&server, more).await??), (Verdict::OverLimit, vec![over]));
    let mut own = about(vec![account_of("eco_b"), account_of("eco_a")]);
    own.descriptors[1].hits_addend = Some(UInt64Value { value: u64::MAX });
    let (verdict, statuses) = seen(&ask(&server, own).await??);
    assert_eq!((verdict, statuses[1]), (Verdict::OverLimit, over));
    for (eco_id, units) in [("eco_a", 1_000_000), ("eco_b", 0)] {
        assert_eq!(consumed(&server, eco_id).await?, units, "{eco_id}: all or none");
    }
    Ok(())
}

async fn set_included(db: &TestDb, units: i64) -> Result<()> {
    let set = "update eco_plans set included_units = $1 where plan = 'pro'";
    sqlx::query(set).bind(units).execute(&db.pool).await.context("the plan is changed")?;
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let wrong = async |request: RateLimitRequest| -> Result<Vec<String>> {
        Ok(fields(&refused(ask(&server, request).await?, Code::InvalidArgument, "INVALID_ARGUMENT")))
    };
    assert_eq!(wrong(about(Vec::new())).await?, ["descriptors"]);
    assert_eq!(wrong(about(vec![account_of("eco_a"); 33])).await?, ["descriptors"]);
    let mut bad = about(vec![account_of("eco_a"); 2]);
    bad.descriptors[1].is_negative_hits = true;
    assert_eq!(wrong(bad).await?, ["descriptors[1].is_negative_hits"]);
    assert_eq!(consumed(&server, "eco_a").await?, 0);
    Ok(())
}
