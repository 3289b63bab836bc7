//! `GET /api/secure/ping`: a tracked endpoint.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use nexus_core::plan::Plan;
use nexus_testkit::db::TestDb;
use sqlx::Row;
use tokio::io::AsyncWriteExt;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const PING: &str = "/api/secure/ping";

impl Suite {
    /// Waits until an event waits for the log, which is locked.
    async fn recording_waits(&self) -> Result<()> {
        let query = "select exists (select from pg_stat_activity where datname = current_database()
                     and wait_event_type = 'Lock' and query ~* '^\\s*(insert into|copy) eco_api_usage')";
        let waits = async {
            while !sqlx::query_scalar::<_, bool>(query).fetch_one(&self.db.pool).await? {}
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(20), waits).await?
    }

    /// Units recorded of an account.
    async fn recorded(&self, eco_id: &str) -> Result<i64> {
        let query = "select coalesce(sum(units_count), 0)::bigint from eco_api_usage where eco_id = $1";
        Ok(sqlx::query_scalar(query).bind(eco_id).fetch_one(&self.db.pool).await?)
    }
}

#[tokio::test]
async fn an_answered_call_is_metered() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    let answer = suite.get(&format!("{PING}?x=1"), &key).await?;
    assert_answer!(answer);
    let key_id = key.trim_start_matches("ApiKey ").split('.').next().map(str::to_owned);
    assert_eq!(answer.body["apiKeyId"].as_str(), key_id.as_deref());
    let row = sqlx::query("select * from eco_api_usage").fetch_one(&suite.db.pool).await?;
    let shown = (
        row.try_get::<String, _>("eco_id")?,
        row.try_get::<String, _>("endpoint")?,
        row.try_get::<String, _>("method")?,
        row.try_get::<i16, _>("status_code")?,
        row.try_get::<i64, _>("units_count")?,
        row.try_get::<Option<String>, _>("api_key_id")?,
    );
    assert_eq!(shown, ("eco_free".into(), PING.into(), "GET".into(), 200, 1, key_id));
    let current = suite.get_as("eco_free", "/api/usage/current").await?;
    assert_eq!(current.body["api_calls"], 1);
    Ok(())
}

/// By its own clock it would stamp calls as of the future, which are refused.
#[tokio::test]
async fn a_gateway_whose_clock_is_ten_minutes_ahead_records_by_the_clock_of_the_database() -> Result<()> {
    let db = TestDb::new().await?;
    db.set_clock_back(600).await?;
    let suite = Suite::start_on(db, |_| {}).await?;
    let right = || Utc::now() - TimeDelta::seconds(600);
    for (eco_id, test_mode) in [("eco_free", false), ("eco_test", true)] {
        suite.account(eco_id, Plan::Free).await?;
        let key = suite.api_key(eco_id, test_mode).await?;
        let (before, answer, after) = (right(), suite.get(PING, &key).await?, right());
        assert_eq!(answer.status, 200);
        let stamped = "select event_time from eco_api_usage where eco_id = $1";
        let stamped: DateTime<Utc> =
            sqlx::query_scalar(stamped).bind(eco_id).fetch_one(&suite.db.pool).await?;
        let slack = TimeDelta::seconds(5);
        assert!((before - slack..=after + slack).contains(&stamped), "{stamped} is not about {before}");
        let Some(limit) = answer.header("ratelimit") else {
            assert!(test_mode, "{answer:?}");
            continue;
        };
        let resets = answer.header("x-ratelimit-reset").context("the reset")?.parse::<DateTime<Utc>>()?;
        let left = limit.rsplit_once("t=").context("the time left")?.1.parse::<i64>()?;
        assert!((left - (resets - after).num_seconds()).abs() <= 5, "{left} s are left, and {answer:?}");
    }
    Ok(())
}

/// The same of what a refused client is told.
#[tokio::test]
async fn a_gateway_whose_clock_is_wrong_tells_refused_clients_the_right_time() -> Result<()> {
    let db = TestDb::new().await?;
    db.set_clock_back(600).await?;
    let suite = Suite::start_on(db, |_| {}).await?;
    sqlx::query("update eco_plans set included_units = 1 where plan = 'free'")
        .execute(&suite.db.pool)
        .await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    assert_eq!(suite.get(PING, &key).await?.status, 200);
    let refused = suite.get(PING, &key).await?;
    assert_eq!(refused.status, 429);
    let resets = refused.header("x-ratelimit-reset").context("the reset")?.parse::<DateTime<Utc>>()?;
    let left = (resets - (Utc::now() - TimeDelta::seconds(600))).num_seconds();
    let told = refused.number("retry-after")?;
    assert!((left - 5..=left + 65).contains(&told), "{told}: {left} s are left");
    Ok(())
}

#[tokio::test]
async fn a_recording_whose_fate_is_unknown_is_sent_again_as_the_same_event() -> Result<()> {
    let mut suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    let mut lock = nexus_kit::db::begin(&suite.db.pool).await?;
    sqlx::query("lock table eco_api_usage in share mode").execute(&mut *lock).await?;
    let mut ping = tokio::spawn(suite.request("GET", PING)?.header("authorization", &key).send());
    tokio::select! {
        waits = suite.recording_waits() => waits?,
        answered = &mut ping => anyhow::bail!("the call did not wait for its recording: {answered:?}"),
    }
    suite.cut_usage();
    lock.rollback().await?;
    suite.mend_usage();
    // Perhaps before it is recorded: nothing can be delivered at the moment.
    assert_eq!(ping.await??.status(), 200);
    // The gateway ends when usage-svc has acknowledged the event, and that one when all it was ever sent is written.
    suite.drain_gateway().await?;
    suite.stop_usage().await?;
    assert_eq!(suite.recorded("eco_free").await?, 1);
    Ok(())
}

/// An admitted call is answered; that its event is late is not the caller's trouble, nor is it lost.
#[tokio::test]
async fn a_call_whose_recording_takes_too_long_is_answered_and_recorded_later() -> Result<()> {
    // Enough for the call to be admitted on a busy machine, and less than the 5 s that usage-svc waits for a lock.
    let suite = Suite::start_with(|config| config.backend_timeout = Duration::from_secs(3)).await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    let mut lock = nexus_kit::db::begin(&suite.db.pool).await?;
    sqlx::query("lock table eco_api_usage in share mode").execute(&mut *lock).await?;
    let answer = suite.get(PING, &key).await?;
    assert_eq!((answer.status.as_u16(), answer.number("x-ratelimit-remaining")?), (200, 999));
    assert_eq!(suite.recorded("eco_free").await?, 0);
    lock.rollback().await?;
    suite.drain_gateway().await?;
    assert_eq!(suite.recorded("eco_free").await?, 1);
    let booked: i64 = sqlx::query_scalar("select sum(booked_units)::bigint from eco_quota_leases")
        .fetch_one(&suite.db.pool)
        .await?;
    assert_eq!(booked, 1, "against its admission");
    Ok(())
}

/// Such calls are admitted from units that the gateway holds, which it gives back when it stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_busy_account_are_admitted_and_recorded_like_others() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    // Several at once: on a machine that is busy enough, one after the other would be no busy account.
    for _ in 0..10 {
        for answer in join_all((0..6).map(|_| suite.get(PING, &key))).await {
            assert_eq!(answer?.status, 200);
        }
    }
    suite.drain_gateway().await?;
    assert_eq!(suite.recorded("eco_free").await?, 60);
    let held = "select sum(booked_units)::bigint, sum(granted_units - returned_units)::bigint,
                       count(*) filter (where settled_time is null)
                from eco_quota_leases where client_id is not null";
    let (booked, used, open): (i64, i64, i64) = sqlx::query_as(held).fetch_one(&suite.db.pool).await?;
    assert!(booked > 20, "{booked} of 60 were admitted from what was held");
    assert_eq!((used, open), (booked, 0));
    Ok(())
}

#[tokio::test]
async fn the_key_of_a_closed_account_opens_nothing() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_gone", Plan::Free).await?;
    let key = suite.api_key("eco_gone", false).await?;
    let close = "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_gone'";
    sqlx::query(close).execute(&suite.db.pool).await?;
    assert_answer!(suite.get(PING, &key).await?);
    Ok(())
}

#[tokio::test]
async fn over_a_hard_limit_a_call_is_refused_and_not_recorded() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    suite.record(vec![event("eco_free", "/v1/x", 200, 999)]).await?;
    let key = suite.api_key("eco_free", false).await?;
    let last = suite.get(PING, &key).await?;
    assert_eq!((last.status.as_u16(), last.number("x-ratelimit-remaining")?), (200, 0));
    let (asked, refused, answered) = (Utc::now(), suite.get(PING, &key).await?, Utc::now());
    let reset: DateTime<Utc> = refused.header("x-ratelimit-reset").unwrap_or_default().parse()?;
    let (most, least) = ((reset - asked).num_seconds(), (reset - answered).num_seconds());
    let retry_after = refused.number("retry-after")?;
    assert!((least..=most + 62).contains(&retry_after), "{retry_after} for {least} to {most}");
    let mut shown = refused.shown();
    shown["headers"]["retry-after"] = "[seconds]".into();
    insta::assert_json_snapshot!(shown, {
        ".body.period_end" => crate::answer::time(),
        ".headers[\"x-ratelimit-reset\"]" => crate::answer::time(),
        ".headers[\"ratelimit-policy\"]" => crate::answer::seconds(),
        ".headers.ratelimit" => crate::answer::seconds(),
    });
    assert_eq!(suite.recorded("eco_free").await?, 1_000);
    let current = suite.get_as("eco_free", "/api/usage/current").await?;
    assert_eq!((&current.body["api_calls"], &current.body["remaining"]), (&1_000.into(), &0.into()));
    Ok(())
}

#[tokio::test]
async fn beyond_a_soft_limit_calls_go_on() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 100_000)]).await?;
    let key = suite.api_key("eco_pro", false).await?;
    assert_answer!(suite.get(PING, &key).await?);
    let overage = suite.get_as("eco_pro", "/api/usage/overage").await?;
    assert_eq!(overage.body["overage_calls"], 1);
    Ok(())
}

#[tokio::test]
async fn an_unlimited_plan_shows_no_limit() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_big", Plan::Enterprise).await?;
    let key = suite.api_key("eco_big", false).await?;
    assert_answer!(suite.get(PING, &key).await?);
    Ok(())
}

#[tokio::test]
async fn a_test_mode_key_is_metered_apart_and_never_limited() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    suite.record(vec![event("eco_free", "/v1/x", 200, 1_000)]).await?;
    let key = suite.api_key("eco_free", true).await?;
    assert_answer!(suite.get(PING, &key).await?);
    let current = suite.get_as("eco_free", "/api/usage/current").await?;
    assert_eq!(current.body["api_calls"], 1_000);
    Ok(())
}

/// A key's scopes are for what it calls over gRPC; a tracked endpoint is metered in the gateway's own name.
#[tokio::test]
async fn a_key_with_scopes_of_any_kind_calls_a_tracked_endpoint() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    for scopes in [&[][..], &["reports.read"], &["usage.check", "usage.write"]] {
        let body = serde_json::json!({"name": "scoped", "scopes": scopes});
        let made = suite.post_as("eco_free", "/api/keys/generate", &body).await?;
        let key = made.body["key"].as_str().unwrap_or_default();
        assert_eq!(suite.get(PING, &format!("ApiKey {key}")).await?.status, 200, "{scopes:?}");
    }
    assert_eq!(suite.recorded("eco_free").await?, 3);
    Ok(())
}

/// All calls share a connection to each service: what one client does to it must not end it for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_give_up_cost_the_others_nothing() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    let address = suite.gateway.trim_start_matches("http://").to_owned();
    let made_up = format!("ApiKey eco_api_{}.{}", "a".repeat(22), "b".repeat(22));
    let request = format!("GET {PING} HTTP/1.1\r\nhost: x\r\nauthorization: {made_up}\r\n\r\n");
    let stop = tokio_util::sync::CancellationToken::new();
    let strangers: Vec<_> = (0..4)
        .map(|_| {
            let (address, request, stop) = (address.clone(), request.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let mut connection = tokio::net::TcpStream::connect(&address).await?;
                    connection.write_all(request.as_bytes()).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(suite.get(PING, &key).await?.status, 200);
    }
    stop.cancel();
    for stranger in strangers {
        stranger.await??;
    }
    // They keep the machine busy: a call may be answered before it is recorded.
    suite.drain_gateway().await?;
    assert_eq!(suite.recorded("eco_free").await?, 20);
    Ok(())
}

#[tokio::test]
async fn without_a_good_key_nothing_is_answered() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    assert_answer!(Answer::of(suite.request("GET", PING)?).await?);
    let jwt = suite.get_as("eco_free", PING).await?;
    assert_eq!((jwt.status.as_u16(), &jwt.body["error"]), (401, &"Missing API key".into()));

    let (id, _) = key.split_once('.').unwrap_or_default();
    let wrong_secret = format!("{id}.0123456789012345678901");
    let unknown = "ApiKey eco_api_0123456789012345678901.0123456789012345678901".to_owned();
    for bad in [wrong_secret, unknown, id.to_owned(), "ApiKey x".to_owned(), format!("{key}x")] {
        let answer = suite.get(PING, &bad).await?;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error"]),
            (401, &"Invalid API key".into()),
            "{bad}"
        );
    }
    assert_answer!(suite.get(PING, "ApiKey x").await?);
    assert_eq!(suite.recorded("eco_free").await?, 0);
    Ok(())
}
