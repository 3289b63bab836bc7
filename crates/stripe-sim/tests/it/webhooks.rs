//! Webhooks: signed, tried again, late and twice.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use axum::http::StatusCode;
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use stripe_sim::Config;

use crate::harness::{Sim, id, ids, read};
use crate::receiver::{Received, Receiver};

async fn endpoint(sim: &Sim, receiver: &Receiver, events: &str) -> Result<Value> {
    sim.create("/v1/webhook_endpoints", &[("url", &receiver.url), ("enabled_events[]", events)]).await
}

fn check_signature(received: &Received, secret: &str) -> Result<()> {
    let (t, v1) = received.signature.split_once(",v1=").context("t and v1")?;
    let t = t.strip_prefix("t=").context("t")?;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    mac.update(format!("{t}.{}", received.body).as_bytes());
    assert_eq!(v1, hex::encode(mac.finalize().into_bytes()));
    ensure!((chrono::Utc::now().timestamp() - t.parse::<i64>()?).abs() < 60);
    Ok(())
}

#[tokio::test]
async fn an_event_is_signed_with_the_endpoints_secret() -> Result<()> {
    let sim = Sim::start().await?;
    let receiver = Receiver::start().await?;
    let created = endpoint(&sim, &receiver, "customer.created").await?;
    let secret = created["secret"].as_str().context("a secret")?;
    ensure!(secret.starts_with("whsec_"));
    let path = format!("/v1/webhook_endpoints/{}", id(&created)?);
    ensure!(sim.read(&path).await?["secret"].is_null(), "the secret is shown once");

    let customer = sim.customer().await?;
    sim.price().await?;
    sim.advance(0).await?;
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    check_signature(&received[0], secret)?;

    let event = received[0].event()?;
    assert_eq!((&event["type"], &event["object"]), (&json!("customer.created"), &json!("event")));
    assert_eq!(event["data"]["object"]["id"], customer);
    ensure!(event["request"]["id"].as_str().is_some_and(|id| id.starts_with("req_")));
    let kept = sim.read(&format!("/v1/events/{}", id(&event)?)).await?;
    assert_eq!((&kept["pending_webhooks"], &kept["data"]), (&json!(0), &event["data"]));

    assert_eq!(read(sim.delete(&path).send().await?).await?.1["deleted"], true);
    sim.customer().await?;
    sim.advance(0).await?;
    assert_eq!(receiver.received().len(), 1);
    sim.stop().await
}

#[tokio::test]
async fn a_refused_event_is_tried_again_for_three_days() -> Result<()> {
    let sim = Sim::start().await?;
    let receiver = Receiver::start().await?;
    endpoint(&sim, &receiver, "customer.*").await?;
    receiver.answer_with(StatusCode::INTERNAL_SERVER_ERROR);
    sim.customer().await?;
    sim.advance(0).await?;
    assert_eq!(receiver.received().len(), 1);
    sim.advance(60).await?;
    assert_eq!(receiver.received().len(), 2);
    assert_eq!(ids(&sim.read("/v1/events?delivery_success=false").await?)?.len(), 1);
    sim.advance(5 * 86_400).await?;
    let given_up = receiver.received().len();
    ensure!((8..16).contains(&given_up), "{given_up}");
    sim.advance(5 * 86_400).await?;
    assert_eq!(receiver.received().len(), given_up);

    sim.customer().await?;
    sim.advance(0).await?;
    receiver.answer_with(StatusCode::OK);
    sim.advance(60).await?;
    assert_eq!(receiver.received().len(), given_up + 2);
    sim.advance(86_400).await?;
    assert_eq!(receiver.received().len(), given_up + 2);
    sim.stop().await
}

#[tokio::test]
async fn by_seed_events_come_twice_and_out_of_order_and_none_is_lost() -> Result<()> {
    let sim = Sim::start().await?;
    let receiver = Receiver::start().await?;
    endpoint(&sim, &receiver, "*").await?;
    let unreliable = json!({ "seed": 7, "duplicate": 0.3, "delay": 0.5, "max_delay_seconds": 3600 });
    sim.admin("/webhooks/unreliable", unreliable).await?;
    for _ in 0..40 {
        sim.customer().await?;
    }
    sim.advance(3 * 3600).await?;
    let listed = ids(&sim.read("/v1/events?limit=100").await?)?;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let events = receiver.events()?;
    for (event, _) in &events {
        *times.entry(event.clone()).or_default() += 1;
    }
    assert_eq!(times.len(), 40);
    ensure!(listed.iter().all(|event| times.contains_key(event)));
    let twice = times.values().filter(|times| **times == 2).count();
    ensure!((4..24).contains(&twice), "{twice}");
    let mut first: Vec<&String> = Vec::new();
    for (event, _) in &events {
        if !first.contains(&event) {
            first.push(event);
        }
    }
    let created: Vec<&String> = listed.iter().rev().collect();
    ensure!(first != created, "they came in order");
    sim.stop().await
}

#[tokio::test]
async fn a_draft_waits_for_its_webhook_and_not_longer_than_three_days() -> Result<()> {
    let sim = Sim::start().await?;
    let receiver = Receiver::start().await?;
    sim.freeze().await?;
    let form = json!({ "url": receiver.url, "secret": "whsec_known" });
    let set = sim.admin("/webhooks", form.clone()).await?;
    assert_eq!(sim.admin("/webhooks", form).await?["id"], set["id"]);
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    let end = subscription["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
    let status = async || {
        let list = sim.read(&format!("/v1/invoices?customer={customer}&limit=1")).await?;
        anyhow::Ok(list["data"][0]["status"].clone())
    };
    receiver.answer_with(StatusCode::SERVICE_UNAVAILABLE);
    sim.admin("/clock", json!({ "to": end + 10 * 3600 })).await?;
    assert_eq!(status().await?, "draft");
    receiver.answer_with(StatusCode::OK);
    // What is still to be sent is sent now, and the hour begins.
    sim.admin("/webhooks/send", json!({})).await?;
    sim.advance(3500).await?;
    assert_eq!(status().await?, "draft");
    sim.advance(100).await?;
    assert_eq!(status().await?, "paid");

    receiver.answer_with(StatusCode::SERVICE_UNAVAILABLE);
    let next = sim.read(&format!("/v1/subscriptions/{}", id(&subscription)?)).await?;
    let end = next["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
    sim.admin("/clock", json!({ "to": end + 72 * 3600 - 1 })).await?;
    assert_eq!(status().await?, "draft");
    sim.advance(1).await?;
    assert_eq!(status().await?, "paid");
    sim.stop().await
}

#[tokio::test]
async fn a_draft_does_not_wait_for_an_endpoint_that_is_gone() -> Result<()> {
    let sim = Sim::start().await?;
    let receiver = Receiver::start().await?;
    sim.freeze().await?;
    let endpoint = id(&endpoint(&sim, &receiver, "invoice.created").await?)?;
    receiver.answer_with(StatusCode::SERVICE_UNAVAILABLE);
    let customer = sim.customer().await?;
    let form = [("customer", customer.as_str()), ("auto_advance", "true")];
    let path = format!("/v1/invoices/{}", id(&sim.create("/v1/invoices", &form).await?)?);
    sim.advance(2 * 3600).await?;
    assert_eq!(sim.read(&path).await?["status"], "draft");
    sim.delete(&format!("/v1/webhook_endpoints/{endpoint}")).send().await?.error_for_status()?;
    sim.advance(3599).await?;
    assert_eq!(sim.read(&path).await?["status"], "draft");
    sim.advance(1).await?;
    assert_eq!(sim.read(&path).await?["status"], "paid");
    sim.stop().await
}

#[tokio::test]
async fn what_is_undelivered_survives_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = || Config { data: Some(folder.path().join("stripe.jsonl")), ..Config::default() };
    let receiver = Receiver::start().await?;
    let sim = Sim::start_with(config()).await?;
    endpoint(&sim, &receiver, "*").await?;
    receiver.answer_with(StatusCode::INTERNAL_SERVER_ERROR);
    sim.customer().await?;
    sim.advance(0).await?;
    sim.stop().await?;
    let sim = Sim::start_with(config()).await?;
    receiver.answer_with(StatusCode::OK);
    sim.advance(60).await?;
    assert_eq!(receiver.received().len(), 2);
    assert_eq!(receiver.received()[0].body, receiver.received()[1].body);
    sim.stop().await
}

#[tokio::test]
async fn the_configured_endpoint_gets_all_events_and_moves_with_the_configuration() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (before, after) = (Receiver::start().await?, Receiver::start().await?);
    for (receiver, secret) in [(&before, "whsec_1"), (&after, "whsec_2")] {
        let config = Config {
            data: Some(folder.path().join("stripe.jsonl")),
            webhook_url: Some(receiver.url.clone()),
            webhook_secret: Some(secret.into()),
            ..Config::default()
        };
        let sim = Sim::start_with(config).await?;
        sim.customer().await?;
        sim.advance(0).await?;
        let received = receiver.received();
        assert_eq!(received.len(), 1);
        check_signature(&received[0], secret)?;
        assert_eq!(ids(&sim.read("/v1/webhook_endpoints").await?)?.len(), 1);
        sim.stop().await?;
    }
    assert_eq!(before.received().len(), 1);
    Ok(())
}
