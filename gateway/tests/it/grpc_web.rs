//! gRPC-Web, as a browser speaks it: over HTTP/1.1, with the trailers in the body.

use anyhow::{Context, Result, bail};
use axum::{Router, routing::post};
use http::HeaderMap;
use nexus_core::plan::Plan;
use nexus_proto::{analytics::v1 as analytics, billing::v1 as billing, usage::v1 as usage};
use nexus_testkit::settings::{ADMIN, user_token};
use prost::Message;
use reqwest::{RequestBuilder, Response};
use tokio::{net::TcpListener, sync::mpsc};

use crate::suite::{Suite, event};

const CURRENT: &str = "/nexus.usage.v1.UsageService/GetCurrentUsage";
const WATCH: &str = "/nexus.billing.v1.BillingService/WatchOverageRun";
const HISTORY: &str = "/nexus.analytics.v1.AnalyticsService/GetUsageHistory";
/// Calls that an account may have under way.
const SHARE: usize = 16;
const BINARY: &str = "application/grpc-web+proto";

/// Messages, and the status in the trailers.
struct Answer {
    messages: Vec<Vec<u8>>,
    status: String,
}

impl Suite {
    async fn send(&self, path: &str, token: Option<&str>, message: &impl Message) -> Result<Response> {
        self.send_with(path, &token.map(|token| format!("Bearer {token}")).unwrap_or_default(), message).await
    }

    async fn send_with(&self, path: &str, authorization: &str, message: &impl Message) -> Result<Response> {
        Ok(self.call(path, authorization, message)?.send().await?)
    }

    fn call(&self, path: &str, authorization: &str, message: &impl Message) -> Result<RequestBuilder> {
        let mut body = vec![0];
        body.extend(u32::try_from(message.encoded_len())?.to_be_bytes());
        body.extend(message.encode_to_vec());
        let request = self.request("POST", path)?.header("content-type", BINARY).header("x-grpc-web", "1");
        let request =
            if authorization.is_empty() { request } else { request.header("authorization", authorization) };
        Ok(request.body(body))
    }
}

impl Answer {
    async fn of(response: Response) -> Result<Self> {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], BINARY);
        let status = response.headers().get("grpc-status").map(|status| status.to_str().map(str::to_owned));
        let mut answer = Answer { messages: Vec::new(), status: status.transpose()?.unwrap_or_default() };
        let body = response.bytes().await?;
        let mut rest = &body[..];
        while let Some((head, after)) = rest.split_at_checked(5) {
            let length = u32::from_be_bytes(head[1..].try_into()?) as usize;
            let (frame, after) = after.split_at_checked(length).context("a whole frame")?;
            if head[0] & 0x80 == 0 {
                answer.messages.push(frame.to_vec());
            } else {
                let trailers = String::from_utf8_lossy(frame).into_owned();
                let status = trailers.lines().find_map(|line| line.strip_prefix("grpc-status:"));
                answer.status = status.context("a status")?.trim().to_owned();
            }
            rest = after;
        }
        if !rest.is_empty() {
            bail!("{rest:?} is left over");
        }
        Ok(answer)
    }
}

#[tokio::test]
async fn a_browser_makes_a_call() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.record(vec![event("eco_a", "/v1/x", 200, 7)]).await?;
    let token = user_token("eco_a")?;
    let own = usage::GetCurrentUsageRequest::default();
    let answer = Answer::of(suite.send(CURRENT, Some(&token), &own).await?).await?;
    assert_eq!((answer.status.as_str(), answer.messages.len()), ("0", 1));
    let usage = usage::GetCurrentUsageResponse::decode(&answer.messages[0][..])?;
    assert_eq!((usage.eco_id.as_str(), usage.api_calls_count), ("eco_a", 7));
    Ok(())
}

#[tokio::test]
async fn a_browser_follows_a_stream() -> Result<()> {
    let suite = Suite::start().await?;
    let run = suite.run_overage().await?;
    let run_id = run.body["run_id"].as_str().context("a run")?.to_owned();
    let watch = billing::WatchOverageRunRequest { run_id };
    let answer = Answer::of(suite.send(WATCH, Some(&user_token(ADMIN)?), &watch).await?).await?;
    assert_eq!(answer.status, "0");
    let last = billing::WatchOverageRunResponse::decode(&answer.messages.last().context("a message")?[..])?;
    assert!(!last.running, "{last:?}");
    Ok(())
}

#[tokio::test]
async fn who_may_not_call_is_told_as_grpc_tells_it() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let token = user_token("eco_a")?;
    let foreign = usage::GetCurrentUsageRequest { eco_id: "eco_b".to_owned() };
    let answer = Answer::of(suite.send(CURRENT, Some(&token), &foreign).await?).await?;
    assert_eq!((answer.status.as_str(), answer.messages.len()), ("7", 0), "PERMISSION_DENIED");
    let answer = Answer::of(suite.send(CURRENT, None, &foreign).await?).await?;
    assert_eq!(answer.status, "16", "UNAUTHENTICATED");
    let answer = Answer::of(suite.send(&format!("{CURRENT}s"), Some(&token), &foreign).await?).await?;
    assert_eq!(answer.status, "12", "UNIMPLEMENTED");
    Ok(())
}

/// As over REST: a good key counts for its account, which may send one a second and two at once; a bad one for the
/// address, here without a rate.
#[tokio::test]
async fn a_key_counts_for_its_account() -> Result<()> {
    let suite = Suite::start_with(|config| {
        config.account_rate_per_second = 1;
        config.address_rate_per_second = 0;
    })
    .await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let (a, b) = (suite.api_key("eco_a", false).await?, suite.api_key("eco_b", false).await?);
    let bad = format!("{}x", &a[..a.len() - 1]);
    let own = usage::GetCurrentUsageRequest::default();
    let refused = async {
        loop {
            let answer = suite.send_with(CURRENT, &a, &own).await?;
            if answer.status() == 429 {
                return anyhow::Ok(());
            }
            assert_eq!(Answer::of(answer).await?.status, "0");
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), refused).await??;
    assert_eq!(Answer::of(suite.send_with(CURRENT, &b, &own).await?).await?.status, "0", "another account");
    for _ in 0..4 {
        assert_eq!(Answer::of(suite.send_with(CURRENT, &bad, &own).await?).await?.status, "16", "a bad key");
    }
    Ok(())
}

/// Who made a key up is held up by where it comes from, and the good keys that come from there are not.
#[tokio::test]
async fn a_bad_key_counts_for_its_address() -> Result<()> {
    let suite = Suite::start_with(|config| {
        config.account_rate_per_second = 0;
        config.address_rate_per_second = 1;
    })
    .await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    let bad = format!("{}x", &key[..key.len() - 1]);
    let own = usage::GetCurrentUsageRequest::default();
    assert_eq!(Answer::of(suite.send_with(CURRENT, &key, &own).await?).await?.status, "0", "it is known");
    let refused = async {
        while suite.send_with(CURRENT, &bad, &own).await?.status() != 429 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), refused).await??;
    for _ in 0..4 {
        assert_eq!(Answer::of(suite.send_with(CURRENT, &key, &own).await?).await?.status, "0");
    }
    Ok(())
}

/// Which of two the service would go by, its callers do not know.
#[tokio::test]
async fn two_credentials_are_none() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let bearer = format!("Bearer {}", user_token("eco_a")?);
    let request = suite.request("POST", CURRENT)?.header("content-type", BINARY);
    let request = request.header("authorization", &bearer).header("authorization", "Bearer x");
    let answer = request.body(vec![0; 5]).send().await?;
    assert_eq!(answer.status(), 401);
    Ok(())
}

#[tokio::test]
async fn calls_whose_caller_sends_a_stream_are_not_taken() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    for method in ["LeaseQuota", "StreamUsage"] {
        let path = format!("/nexus.usage.v1.UsageService/{method}");
        let answer = suite.send_with(&path, &key, &usage::LeaseQuotaRequest::default()).await?;
        let told = answer.headers().get("grpc-message").context("a message")?.to_str()?.to_owned();
        assert!(told.contains("gRPC-Web"), "{told}");
        assert_eq!(Answer::of(answer).await?.status, "12", "{method}: UNIMPLEMENTED");
    }
    Ok(())
}

#[tokio::test]
async fn an_account_has_its_share_of_calls_and_others_theirs() -> Result<()> {
    let (_silent, address) = crate::shares::silent().await?;
    let suite = Suite::start_with(|config| config.usage_addr = address).await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let (a, b) = (user_token("eco_a")?, user_token("eco_b")?);
    let own = usage::GetCurrentUsageRequest::default();
    let waiting = futures::future::join_all((0..SHARE).map(|_| suite.send(CURRENT, Some(&a), &own)));
    let others = async {
        suite.in_flight(SHARE).await?;
        let history = analytics::GetUsageHistoryRequest { days_count: 7, ..Default::default() };
        let more = suite.send(HISTORY, Some(&a), &history).await?;
        assert_eq!(more.status(), 503);
        assert_eq!(suite.get_as("eco_a", "/api/usage/history").await?.status, 200, "over REST");
        let another = Answer::of(suite.send(HISTORY, Some(&b), &history).await?).await?;
        assert_eq!(another.status, "0", "another account");
        anyhow::Ok(())
    };
    tokio::select! {
        early = waiting => anyhow::bail!("nobody answers these: {}", early.len()),
        others = others => others?,
    }
    Ok(())
}

#[tokio::test]
async fn a_service_that_is_away_is_unavailable() -> Result<()> {
    let mut suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.stop_usage().await?;
    let own = usage::GetCurrentUsageRequest::default();
    let answer = Answer::of(suite.send(CURRENT, Some(&user_token("eco_a")?), &own).await?).await?;
    assert_eq!(answer.status, "14", "UNAVAILABLE");
    Ok(())
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_given_up_at_the_deadline() -> Result<()> {
    let (_silent, address) = crate::shares::silent().await?;
    let suite = Suite::start_with(|config| {
        config.usage_addr = address;
        config.backend_timeout = std::time::Duration::from_millis(300);
    })
    .await?;
    let own = usage::GetCurrentUsageRequest::default();
    let answer = Answer::of(suite.send(CURRENT, Some(&user_token("eco_a")?), &own).await?).await?;
    assert_eq!(answer.status, "4", "DEADLINE_EXCEEDED");
    Ok(())
}

#[tokio::test]
async fn a_service_is_told_until_when_somebody_waits_for_it() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let (tell, mut told) = mpsc::unbounded_channel();
    let never = async move |headers: HeaderMap| {
        let deadline = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).map(str::to_owned);
        tell.send(deadline).expect("the test is there");
        std::future::pending::<()>().await;
    };
    tokio::spawn(axum::serve(listener, Router::new().route(CURRENT, post(never))).into_future());
    let suite = Suite::start_with(|config| {
        config.usage_addr = address;
        config.backend_timeout = std::time::Duration::from_secs(1_000);
    })
    .await?;
    let bearer = format!("Bearer {}", user_token("eco_a")?);
    let call = || suite.call(CURRENT, &bearer, &usage::GetCurrentUsageRequest::default());
    let ours = tokio::spawn(call()?.send());
    assert_eq!(told.recv().await.context("a call")?.as_deref(), Some("1000000m"));
    ours.abort();
    let own = Answer::of(call()?.header("grpc-timeout", "50m").send().await?).await?;
    assert_eq!(told.recv().await.context("another")?.as_deref(), Some("50m"));
    assert_eq!(own.status, "4", "DEADLINE_EXCEEDED");
    Ok(())
}

#[tokio::test]
async fn only_grpc_web_to_our_services_is_taken() -> Result<()> {
    let suite = Suite::start().await?;
    for kind in
        ["application/grpc", "application/grpc-webx", "application/grpc-web; x", "application/json", ""]
    {
        let request = suite.request("POST", CURRENT)?.header("content-type", kind).body("x");
        let answer = crate::answer::Answer::of(request).await?;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error"]),
            (415, &"Unsupported media type".into()),
            "{kind}"
        );
    }
    let message = usage::GetCurrentUsageRequest::default();
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
    ] {
        assert_eq!(suite.send(path, None, &message).await?.status(), 404, "{path}");
    }
    Ok(())
}
