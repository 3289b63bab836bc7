//! How fast one caller may send requests.

use std::time::Duration;

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::settings::{ADMIN, user_token};
use serde_json::json;
use stripe_webhook::Webhook;

use crate::{
    answer::{Answer, assert_answer},
    suite::{CRON_SECRET, Suite},
    visitor::Visitor,
    webhooks::signed,
};

const CURRENT: &str = "/api/usage/current";
const PING: &str = "/api/secure/ping";
const EVENT: &str = r#"{"id": "evt_1", "object": "event", "type": "customer.tax_id.created",
                        "data": {"object": {"id": "txi_1"}}}"#;

/// A suite where an account, or an address, may send one request a second, and two at once.
async fn slow(account_rate: u32, address_rate: u32) -> Result<Suite> {
    Suite::start_with(|config| {
        config.account_rate_per_second = account_rate;
        config.address_rate_per_second = address_rate;
        config.trusted_proxies = "127.0.0.0/8".parse().expect("a network");
    })
    .await
}

/// Asks until it is refused, which is before long: each answer takes less than the second that brings another.
async fn refused(ask: impl AsyncFn() -> Result<Answer>, otherwise: u16) -> Result<Answer> {
    let asking = async {
        loop {
            let answer = ask().await?;
            if answer.status == 429 {
                return anyhow::Ok(answer);
            }
            assert_eq!(answer.status, otherwise, "{answer:?}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking).await?
}

#[tokio::test]
async fn an_account_that_sends_too_many_waits_and_others_do_not() -> Result<()> {
    let suite = slow(1, 0).await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let answer = refused(async || suite.get_as("eco_a", CURRENT).await, 200).await?;
    assert_eq!(answer.number("retry-after")?, 1);
    assert_answer!(answer);
    assert_eq!(suite.get_as("eco_b", CURRENT).await?.status, 200);
    // Neither address nor path tells a caller from another.
    let elsewhere = suite.request("GET", "/api/keys/list")?.bearer_auth(user_token("eco_a")?);
    let answer = refused(
        async || {
            let request = elsewhere.try_clone().expect("no stream");
            Answer::of(request.header("x-forwarded-for", "198.51.100.1")).await
        },
        200,
    )
    .await?;
    assert_eq!(answer.body["error"], "Too many requests");
    assert_eq!(suite.get("/healthz", "").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_key_counts_for_its_account_and_is_told_apart_from_a_used_up_plan() -> Result<()> {
    let suite = slow(1, 0).await?;
    suite.account("eco_a", Plan::Free).await?;
    let key = suite.api_key("eco_a", false).await?;
    let answer = refused(async || suite.get(PING, &key).await, 200).await?;
    assert_eq!(answer.body["error"], "Too many requests", "{answer:?}");
    assert!(answer.header("x-ratelimit-limit").is_none(), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn who_shows_nothing_good_counts_by_address() -> Result<()> {
    let suite = slow(0, 1).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    let bad = format!("{}x", &key[..key.len() - 1]);
    assert_eq!(suite.get(PING, &key).await?.status, 200, "it is known from now on");
    let from = async |address: &str, path: &str, authorization: &str| {
        let request = suite.request("GET", path)?.header("x-forwarded-for", address);
        Answer::of(request.header("authorization", authorization)).await
    };
    for (number, (path, authorization, otherwise)) in [
        (CURRENT, "Bearer x", 401),
        (CURRENT, "", 401),
        (PING, "", 401),
        (PING, "ApiKey x", 401),
        (PING, bad.as_str(), 401),
        ("/openapi.json", "", 200),
    ]
    .into_iter()
    .enumerate()
    {
        let address = format!("198.51.100.{number}");
        let answer = refused(async || from(&address, path, authorization).await, otherwise).await?;
        assert_eq!(answer.body["error"], "Too many requests", "{path} {authorization}");
        assert_eq!(answer.number("retry-after")?, 1, "{path} {authorization}");
        // Who is known does not pay for others at the same address.
        let user = format!("Bearer {}", user_token("eco_a")?);
        assert_eq!(from(&address, CURRENT, &user).await?.status, 200);
        assert_eq!(from(&address, PING, &key).await?.status, 200);
    }
    assert_eq!(from("203.0.113.1", CURRENT, "").await?.status, 401, "from another address");
    Ok(())
}

/// Who makes keys up is held up before usage-svc is asked about them, whether or not it answers.
#[tokio::test]
async fn keys_that_are_not_known_count_before_anybody_is_asked_about_them() -> Result<()> {
    let (_silent, address) = crate::shares::silent().await?;
    let suite = Suite::start_with(|config| {
        config.usage_addr = address;
        config.backend_timeout = Duration::from_secs(3_600);
        config.serve.request_timeout = Duration::from_secs(3_600);
        config.address_rate_per_second = 1;
    })
    .await?;
    let made_up = |number: usize| format!("ApiKey eco_api_{number:022}.{}", "0".repeat(22));
    // Two at once may be asked about, and one more each second: nobody answers these.
    let asked = (0..32).map(|number| {
        let (suite, key) = (&suite, made_up(number));
        Box::pin(async move { suite.get(PING, &key).await })
    });
    let first = futures::future::select_all(asked);
    let (answer, ..) = tokio::time::timeout(Duration::from_secs(20), first).await?;
    let answer = answer?;
    assert_eq!((answer.status.as_u16(), answer.number("retry-after")?), (429, 1), "{answer:?}");
    Ok(())
}

/// A key that is known costs usage-svc nothing beyond the rate of its account.
#[tokio::test]
async fn a_known_key_counts_for_its_account_before_anybody_is_asked_about_it() -> Result<()> {
    let suite = slow(1, 0).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    assert_eq!(suite.get(PING, &key).await?.status, 200);
    suite.cut_usage();
    refused(async || suite.get(PING, &key).await, 503).await?;
    Ok(())
}

/// 503 says what is the matter, and 429 would not.
#[tokio::test]
async fn a_key_of_which_nobody_can_say_whether_it_is_good_does_not_count() -> Result<()> {
    let suite = slow(0, 1).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let (key, known) = (suite.api_key("eco_a", false).await?, suite.api_key("eco_a", false).await?);
    assert_eq!(suite.get(PING, &known).await?.status, 200);
    suite.cut_usage();
    for _ in 0..5 {
        assert_eq!(suite.get(PING, &key).await?.status, 503);
        assert_eq!(suite.get(PING, &known).await?.status, 503);
    }
    suite.mend_usage();
    suite.until(async |suite| suite.get(PING, &known).await, |answer| answer.status == 200).await?;
    refused(async || suite.get(CURRENT, "").await, 401).await?;
    assert_eq!(suite.get(PING, &known).await?.status, 200, "it is known yet");
    Ok(())
}

#[tokio::test]
async fn good_keys_do_not_count_for_their_address() -> Result<()> {
    let suite = slow(0, 1).await?;
    suite.account("eco_a", Plan::Pro).await?;
    for _ in 0..5 {
        let key = suite.api_key("eco_a", false).await?;
        assert_eq!(suite.get(PING, &key).await?.status, 200);
    }
    Ok(())
}

/// Nobody has to believe a key that was good: each request asks.
#[tokio::test]
async fn a_key_that_is_revoked_is_a_strangers() -> Result<()> {
    let suite = slow(0, 1).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    assert_eq!(suite.get(PING, &key).await?.status, 200);
    let id = key.trim_start_matches("ApiKey ").split('.').next().unwrap_or_default();
    let revoked = suite.post_as("eco_a", "/api/keys/revoke", &json!({"key_id": id})).await?;
    assert_eq!(revoked.status, 200);
    let ask = async |suite: &Suite| suite.get(PING, &key).await;
    suite.until(ask, |answer| answer.status == 401).await?;
    refused(async || suite.get(PING, &key).await, 401).await?;
    Ok(())
}

#[tokio::test]
async fn pages_and_paths_that_are_none_count_by_address_until_a_session_holds() -> Result<()> {
    let suite = slow(0, 1).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let (nobody, user) = (Visitor::new(&suite)?, Visitor::of(&suite, "eco_a")?);
    let ask = async |visitor: &Visitor<'_>, method: &str, path: &str, address: &str| {
        let request = visitor.request(method, path)?.header("x-forwarded-for", address);
        anyhow::Ok(request.send().await?.status().as_u16())
    };
    let paths = [
        ("GET", "/dashboard", 303),
        ("GET", "/admin", 303),
        ("POST", "/dashboard/keys", 303),
        ("GET", "/sign-in", 200),
        ("POST", "/sign-in", 400),
        ("GET", "/sign-in/oidc", 404),
        ("GET", "/assets/none.css", 404),
        ("GET", "/docs/none.js", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/api/usage/current", 405),
    ];
    for (number, (method, path, otherwise)) in paths.into_iter().enumerate() {
        let address = format!("198.51.100.{number}");
        // The third at once is one too many.
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(ask(&nobody, method, path, &address).await?);
        }
        assert_eq!(seen, [otherwise, otherwise, 429], "{method} {path}");
        assert_eq!(ask(&user, "GET", "/dashboard", &address).await?, 200, "a session at the same address");
    }
    Ok(())
}

#[tokio::test]
async fn a_session_counts_for_its_account() -> Result<()> {
    let suite = slow(1, 0).await?;
    suite.account("eco_a", Plan::Pro).await?;
    let user = Visitor::of(&suite, "eco_a")?;
    let mut seen = Vec::new();
    for path in ["/nowhere", "/assets/none.css", "/dashboard"] {
        seen.push(user.get(path).await?.status.as_u16());
    }
    assert_eq!(seen, [404, 404, 429]);
    assert_eq!(Visitor::new(&suite)?.get("/nowhere").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn health_the_scheduler_and_stripe_are_never_held_up() -> Result<()> {
    let suite = slow(1, 1).await?;
    refused(async || suite.get_as(ADMIN, CURRENT).await, 404).await?;
    refused(async || suite.get(CURRENT, "").await, 401).await?;
    for _ in 0..5 {
        assert_eq!(suite.get("/healthz", "").await?.status, 200);
        assert_eq!(suite.run_overage().await?.status, 200);
        assert_eq!(Answer::of(signed(&suite, EVENT)?).await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn webhooks_that_stripe_did_not_sign_count_by_address() -> Result<()> {
    let suite = slow(0, 1).await?;
    let foreign = Webhook::generate_test_header(EVENT, "whsec_other", None);
    for (number, signature) in ["", foreign.as_str()].into_iter().enumerate() {
        let send = async || {
            let request = suite.request("POST", "/webhooks/stripe")?.body(EVENT);
            let request = request.header("x-forwarded-for", format!("198.51.100.{number}"));
            Answer::of(request.header("stripe-signature", signature)).await
        };
        let answer = refused(send, 400).await?;
        assert_eq!(answer.body["error"], "Too many requests", "{signature}");
    }
    Ok(())
}

/// Each of its answers is an error in the log.
#[tokio::test]
async fn a_scheduler_that_is_not_configured_is_told_so_no_faster_than_by_the_rate() -> Result<()> {
    let suite = Suite::start_with(|config| {
        config.address_rate_per_second = 1;
        config.cron_secret = None;
    })
    .await?;
    refused(async || suite.run_overage().await, 500).await?;
    Ok(())
}

#[tokio::test]
async fn who_guesses_the_schedulers_secret_counts_by_address_and_the_scheduler_does_not() -> Result<()> {
    let suite = slow(0, 1).await?;
    let guess = async || {
        let request = suite.request("POST", "/api/cron/process-overage")?;
        Answer::of(request.bearer_auth(format!("{CRON_SECRET}x"))).await
    };
    assert_eq!(guess().await?.body, json!({"error": "Unauthorized"}));
    refused(guess, 401).await?;
    assert_eq!(suite.run_overage().await?.status, 200);
    Ok(())
}
