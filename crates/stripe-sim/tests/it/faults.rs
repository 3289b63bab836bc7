//! What goes wrong on purpose.

use anyhow::{Result, ensure};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::harness::{Sim, header, read};

fn item(sim: &Sim, customer: &str) -> RequestBuilder {
    let form = [("customer", customer), ("amount", "500"), ("currency", "usd")];
    sim.post("/v1/invoiceitems", &form).header("Idempotency-Key", "charge")
}

#[tokio::test]
async fn an_answer_dropped_after_the_effect_is_there_for_the_retry() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    sim.admin("/faults", json!({ "outcome": { "kind": "drop" } })).await?;
    ensure!(item(&sim, &customer).send().await.is_err());
    assert_eq!(sim.item_count().await?, 1);

    let retry = item(&sim, &customer).send().await?;
    assert_eq!(header(&retry, "idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(retry.status(), 200);
    assert_eq!(sim.item_count().await?, 1);

    let log = sim.read("/_sim/requests?path=/v1/invoiceitems&idempotency_key=charge").await?;
    let seen: Vec<(&Value, &Value)> = log["requests"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| (&entry["dropped"], &entry["replayed"]))
        .collect();
    assert_eq!(seen, [(&json!(true), &json!(false)), (&json!(false), &json!(true))]);
    sim.stop().await
}

#[tokio::test]
async fn a_request_lost_before_the_effect_leaves_nothing() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let fault = json!({ "outcome": { "kind": "drop", "effect": false } }).to_string();
    ensure!(item(&sim, &customer).header("Sim-Fault", fault).send().await.is_err());
    assert_eq!(sim.item_count().await?, 0);
    let retry = item(&sim, &customer).send().await?;
    assert_eq!(header(&retry, "idempotent-replayed"), None);
    assert_eq!(sim.item_count().await?, 1);
    sim.stop().await
}

#[tokio::test]
async fn a_fault_strikes_the_next_requests_of_its_method_and_path_only() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let fault = json!({
        "method": "POST",
        "path": "/v1/invoice*",
        "times": 2,
        "outcome": { "kind": "error", "status": 429, "retry_after": 7, "should_retry": true },
    });
    sim.admin("/faults", fault).await?;
    assert_eq!(sim.get("/v1/invoiceitems").send().await?.status(), 200);
    assert_eq!(sim.post("/v1/customers", &[]).send().await?.status(), 200);
    for _ in 0..2 {
        let limited = item(&sim, &customer).send().await?;
        assert_eq!(header(&limited, "retry-after").as_deref(), Some("7"));
        assert_eq!(header(&limited, "stripe-should-retry").as_deref(), Some("true"));
        let (status, body) = read(limited).await?;
        assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit")));
    }
    // The refusals were not stored under the key.
    assert_eq!(item(&sim, &customer).send().await?.status(), 200);
    sim.stop().await
}

#[tokio::test]
async fn the_work_goes_on_when_the_caller_goes_away() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    sim.admin("/faults", json!({ "hold": true })).await?;
    let caller = tokio::spawn(item(&sim, &customer).send());
    sim.read("/_sim/held").await?;
    caller.abort();
    ensure!(caller.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(sim.item_count().await?, 0);

    sim.admin("/release", json!({})).await?;
    sim.read("/_sim/idle").await?;
    let retry = item(&sim, &customer).send().await?;
    let replayed = header(&retry, "idempotent-replayed");
    assert_eq!(replayed.as_deref(), Some("true"));
    assert_eq!(sim.item_count().await?, 1);
    sim.stop().await
}

#[tokio::test]
async fn a_delayed_request_is_answered_at_once_when_the_server_stops() -> Result<()> {
    let sim = Sim::start().await?;
    sim.admin("/faults", json!({ "hold": true, "delay_ms": 3_600_000 })).await?;
    let held = tokio::spawn(sim.post("/v1/customers", &[]).send());
    sim.read("/_sim/held").await?;
    sim.stop().await?;
    assert_eq!(held.await??.status(), 200);
    Ok(())
}

#[tokio::test]
async fn a_customer_can_be_poisoned() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let form = [("customer", customer.as_str()), ("amount", "500"), ("currency", "usd")];
    let poison = format!("/customers/{customer}");

    sim.admin(&poison, json!({ "declined": true })).await?;
    let (status, body) = read(sim.post("/v1/invoiceitems", &form).send().await?).await?;
    assert_eq!((status, &body["error"]["decline_code"]), (402, &json!("generic_decline")));
    sim.admin(&poison, json!({ "declined": false })).await?;
    assert_eq!(sim.post("/v1/invoiceitems", &form).send().await?.status(), 200);

    sim.admin(&poison, json!({ "deleted": true })).await?;
    let (status, body) = read(sim.post("/v1/invoiceitems", &form).send().await?).await?;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("resource_missing")));
    sim.stop().await
}

#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused() -> Result<()> {
    let sim = Sim::start().await?;
    for fault in [
        json!({ "outcome": { "kind": "error", "status": 200 } }),
        json!({ "outcome": { "kind": "error", "status": 500, "retry": 1 } }),
        json!({ "outcome": { "kind": "explode" } }),
        json!({ "tims": 3 }),
    ] {
        ensure!(sim.admin("/faults", fault.clone()).await.is_err(), "{fault}");
        let by_header = sim.get("/v1/customers").header("Sim-Fault", fault.to_string());
        assert_eq!(by_header.send().await?.status(), 400, "{fault}");
    }
    sim.stop().await
}
