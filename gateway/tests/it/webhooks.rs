//! `POST /webhooks/stripe`.

use anyhow::Result;
use nexus_core::plan::Plan;
use reqwest::RequestBuilder;
use serde_json::json;
use stripe_webhook::Webhook;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, WEBHOOK_SECRET, event},
};

const ROUTE: &str = "/webhooks/stripe";
// With blanks, an order and letters that no program would write again like this.
const BODY: &str = "{ \"id\": \"evt_1\",\n \"type\":\"customer.tax_id.created\", \"object\": \"event\", \"data\": {\"object\": {\"id\": \"txi_1\", \"name\": \"Gr\\u00f6\u{df}e\"}}}\n";

pub(crate) fn signed(suite: &Suite, body: &str) -> Result<RequestBuilder> {
    let signature = Webhook::generate_test_header(body, WEBHOOK_SECRET, None);
    Ok(suite.request("POST", ROUTE)?.header("stripe-signature", signature).body(body.to_owned()))
}

#[tokio::test]
async fn an_event_is_taken_byte_for_byte_and_once() -> Result<()> {
    let suite = Suite::start().await?;
    assert_answer!(Answer::of(signed(&suite, BODY)?).await?);
    let again = Answer::of(signed(&suite, BODY)?).await?;
    assert_answer!(again);
    assert_eq!((again.status.as_u16(), &again.body), (200, &json!({ "received": true, "duplicate": true })));
    let stored: i64 =
        sqlx::query_scalar("select count(*) from eco_stripe_events").fetch_one(&suite.db.pool).await?;
    assert_eq!(stored, 1);
    Ok(())
}

#[tokio::test]
async fn what_stripe_did_not_sign_is_refused() -> Result<()> {
    let suite = Suite::start().await?;
    let send = |signature: &str| {
        let request = suite.request("POST", ROUTE)?.header("stripe-signature", signature);
        anyhow::Ok(Answer::of(request.body(BODY)))
    };
    let foreign = Webhook::generate_test_header(BODY, "whsec_other", None);
    assert_answer!(send(&foreign)?.await?);
    let old = Webhook::generate_test_header(BODY, WEBHOOK_SECRET, Some(1_700_000_000));
    for signature in [old.as_str(), "", "t=1,v1=", "x"] {
        let refused = send(signature)?.await?;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["field"]),
            (400, &"Stripe-Signature".into()),
            "{signature}"
        );
    }
    assert_answer!(Answer::of(suite.request("POST", ROUTE)?.body(BODY)).await?);
    let twice = signed(&suite, BODY)?.header("stripe-signature", &foreign);
    assert_eq!(Answer::of(twice).await?.status, 400);
    // Signed, and no event.
    let refused = Answer::of(signed(&suite, "{}")?).await?;
    assert_answer!(refused);
    assert_eq!((refused.status.as_u16(), &refused.body["field"]), (400, &"body".into()), "{}", refused.body);
    Ok(())
}

#[tokio::test]
async fn an_event_of_a_mebibyte_goes_all_the_way_and_a_longer_one_is_refused() -> Result<()> {
    const LONGEST: usize = 1024 * 1024;
    let suite = Suite::start().await?;
    let event = |length: usize| format!("{BODY}{}", " ".repeat(length - BODY.len()));
    assert_eq!(Answer::of(signed(&suite, &event(LONGEST))?).await?.status, 200);
    assert_eq!(Answer::of(signed(&suite, &event(LONGEST + 1))?).await?.status, 413);
    Ok(())
}

/// Nobody's bytes are taken before there is a signature to check them by.
#[tokio::test]
async fn without_a_signature_the_body_is_not_waited_for() -> Result<()> {
    let suite = Suite::start().await?;
    let mut connection = TcpStream::connect(suite.gateway.trim_start_matches("http://")).await?;
    let head = format!("POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n");
    connection.write_all(head.as_bytes()).await?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"HTTP/1.1 400");
    Ok(())
}

/// An address has room for two of the largest; nobody waits for it, and others have theirs.
#[tokio::test]
async fn large_events_that_do_not_come_hold_up_no_others() -> Result<()> {
    let suite =
        Suite::start_with(|config| config.trusted_proxies = "127.0.0.0/8".parse().expect("a network"))
            .await?;
    let begin = async |address: &str| {
        let mut stream = TcpStream::connect(suite.gateway.trim_start_matches("http://")).await?;
        let head = format!(
            "POST {ROUTE} HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\nstripe-signature: t=1\r\n\
             content-length: 1048576\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        anyhow::Ok(stream)
    };
    let _held = [begin("192.0.2.1").await?, begin("192.0.2.1").await?];
    suite.in_flight(2).await?;
    let mut refused = begin("192.0.2.1").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(refused.read_u8().await?);
    }
    let answer = String::from_utf8(answer)?;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1\r\n"), "{answer}");
    let large = signed(&suite, &format!("{BODY}{}", " ".repeat(1_000_000)))?;
    assert_eq!(Answer::of(large.header("x-forwarded-for", "192.0.2.2")).await?.status, 200);
    let small = signed(&suite, BODY)?.header("x-forwarded-for", "192.0.2.1");
    assert_eq!(Answer::of(small).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn without_billing_svc_stripe_is_asked_to_try_again() -> Result<()> {
    let mut suite = Suite::start().await?;
    suite.stop_billing().await?;
    let answer = Answer::of(signed(&suite, BODY)?).await?;
    assert_eq!(answer.status, 503);
    assert!(answer.number("retry-after")? >= 1);
    Ok(())
}

/// An account whose customer at Stripe knows it, and a price of pro.
async fn customer(suite: &Suite) -> Result<(String, String)> {
    suite.account("eco_a", Plan::Free).await?;
    let customer = suite.stripe("customers", &[("metadata[eco_id]", "eco_a")]).await?;
    let price = [
        ("currency", "usd"),
        ("unit_amount", "4900"),
        ("recurring[interval]", "month"),
        ("product_data[name]", "Pro"),
        ("lookup_key", "pro"),
    ];
    Ok((customer, suite.stripe("prices", &price).await?))
}

/// Stripe says that something happened to a subscription, and the account's plan is soon this.
async fn tell(suite: &Suite, subscription: &str, plan: &str) -> Result<Answer> {
    let event = json!({
        "id": format!("evt_{}", uuid::Uuid::new_v4().simple()), "object": "event",
        "type": "customer.subscription.updated", "data": { "object": { "id": subscription } },
    });
    assert_eq!(Answer::of(signed(suite, &event.to_string())?).await?.status, 200);
    let ask = async |suite: &Suite| suite.get_as("eco_a", "/api/usage/current").await;
    suite.until(ask, |answer| answer.body["plan"] == plan).await
}

#[tokio::test]
async fn a_subscription_at_stripe_is_the_accounts_plan_and_cancelling_wins_no_quota() -> Result<()> {
    let suite = Suite::start().await?;
    let (customer, price) = customer(&suite).await?;
    let free = suite.get_as("eco_a", "/api/usage/current").await?;
    suite.record(vec![event("eco_a", "/v1/x", 200, 990)]).await?;
    // Stripe's times are whole seconds: two subscriptions of one second have one period.
    let mut used = std::collections::HashMap::<String, i64>::new();
    for turn in 1..=2 {
        let form = [("customer", customer.as_str()), ("items[0][price]", &price)];
        let subscription = suite.stripe("subscriptions", &form).await?;
        let paid = tell(&suite, &subscription, "pro").await?;
        let used = used.entry(paid.body["period_start"].to_string()).or_default();
        assert_eq!(paid.body["api_calls"], *used, "{turn}");
        assert_eq!(paid.body["limit"], 100_000);
        *used += 50;
        assert_ne!(paid.body["period_start"], free.body["period_start"]);
        suite.record(vec![event("eco_a", "/v1/x", 200, 50)]).await?;
        suite.stripe_delete(&format!("subscriptions/{subscription}")).await?;
        let back = tell(&suite, &subscription, "free").await?;
        assert_eq!((&back.body["api_calls"], &back.body["remaining"]), (&990.into(), &10.into()), "{turn}");
        assert_eq!(back.body["period_start"], free.body["period_start"]);
        assert_eq!(back.body["period_end"], free.body["period_end"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_counted_while_subscriptions_begin_and_end_are_each_in_one_period() -> Result<()> {
    let suite = Suite::start().await?;
    let (customer, price) = customer(&suite).await?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let count = async {
        let mut counted = 0_i64;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            suite.record((0..5).map(|_| event("eco_a", "/v1/x", 200, 3)).collect()).await?;
            counted += 15;
        }
        anyhow::Ok(counted)
    };
    let change = async {
        for _ in 0..4 {
            let form = [("customer", customer.as_str()), ("items[0][price]", &price)];
            let subscription = suite.stripe("subscriptions", &form).await?;
            tell(&suite, &subscription, "pro").await?;
            suite.stripe_delete(&format!("subscriptions/{subscription}")).await?;
            tell(&suite, &subscription, "free").await?;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (counted, _) = tokio::try_join!(count, change)?;
    // By the raw log, the counters, and the summary once it has caught up.
    let sums: (i64, i64) = sqlx::query_as(
        "select (select sum(units_count)::bigint from eco_api_usage),
                (select sum(recorded_units)::bigint from eco_usage_counters)",
    )
    .fetch_one(&suite.db.pool)
    .await?;
    assert_eq!(sums, (counted, counted));
    // Nothing was counted in a segment after it was closed, nor the same way twice.
    let broken: i64 = sqlx::query_scalar(
        "select count(*) from eco_usage_segments z
         where z.recorded_units is distinct from
               (select coalesce(sum(c.recorded_units), 0)::bigint from eco_usage_counters c
                where (c.eco_id, c.period_start, c.segment) = (z.eco_id, z.period_start, z.segment))",
    )
    .fetch_one(&suite.db.pool)
    .await?;
    assert_eq!(broken, 0);
    let summed = "select coalesce(sum(api_calls), 0)::bigint from eco_usage_records";
    let caught_up = async {
        while sqlx::query_scalar::<_, i64>(summed).fetch_one(&suite.db.pool).await? != counted {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), caught_up).await?
}
