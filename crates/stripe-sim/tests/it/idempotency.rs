//! Idempotency keys.

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::json;

use crate::harness::{KEY, Sim, header, id, read};

const FORM: [(&str, &str); 1] = [("email", "a@example.com")];

fn keyed(sim: &Sim, key: &str, form: &[(&str, &str)]) -> reqwest::RequestBuilder {
    sim.post("/v1/customers", form).header("Idempotency-Key", key)
}

async fn customer_count(sim: &Sim) -> Result<usize> {
    let state = sim.read("/_sim/state").await?;
    Ok(state["customers"].as_array().map_or(0, Vec::len))
}

#[tokio::test]
async fn the_same_request_with_the_same_key_gets_the_stored_answer() -> Result<()> {
    let sim = Sim::start().await?;
    let first = keyed(&sim, "k", &FORM).send().await?;
    let first_id = header(&first, "request-id");
    assert_eq!(header(&first, "idempotent-replayed"), None);
    let (_, first) = read(first).await?;

    let second = keyed(&sim, "k", &FORM).send().await?;
    assert_eq!(header(&second, "idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(header(&second, "original-request"), first_id);
    assert_eq!(header(&second, "idempotency-key").as_deref(), Some("k"));
    ensure!(header(&second, "request-id") != first_id);
    let (status, second) = read(second).await?;
    assert_eq!((status, &second), (200, &first));
    assert_eq!(customer_count(&sim).await?, 1);
    sim.stop().await
}

#[tokio::test]
async fn another_request_with_the_same_key_is_refused_and_changes_nothing() -> Result<()> {
    let sim = Sim::start().await?;
    let first = id(&read(keyed(&sim, "k", &FORM).send().await?).await?.1)?;
    let other_parameters = keyed(&sim, "k", &[("email", "b@example.com")]);
    let other_endpoint = sim.post(&format!("/v1/customers/{first}"), &FORM).header("Idempotency-Key", "k");
    for request in [other_parameters, other_endpoint] {
        let (status, body) = read(request.send().await?).await?;
        assert_eq!(status, 400);
        assert_eq!(body["error"]["type"], "idempotency_error");
    }
    // Neither did they take the key over.
    let (_, again) = read(keyed(&sim, "k", &FORM).send().await?).await?;
    assert_eq!(id(&again)?, first);
    sim.stop().await
}

#[tokio::test]
async fn a_key_in_use_is_a_conflict() -> Result<()> {
    let sim = Sim::start().await?;
    sim.admin("/faults", json!({ "hold": true })).await?;
    let first = tokio::spawn(keyed(&sim, "k", &FORM).send());
    sim.read("/_sim/held").await?;

    let second = keyed(&sim, "k", &FORM).send().await?;
    assert_eq!(header(&second, "stripe-should-retry").as_deref(), Some("true"));
    let (status, body) = read(second).await?;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("idempotency_key_in_use")));

    sim.admin("/release", json!({})).await?;
    let (status, first) = read(first.await??).await?;
    assert_eq!(status, 200);
    // The conflict was not stored: the key gives the first answer now.
    let (_, third) = read(keyed(&sim, "k", &FORM).send().await?).await?;
    assert_eq!(third, first);
    assert_eq!(customer_count(&sim).await?, 1);
    sim.stop().await
}

#[tokio::test]
async fn errors_of_execution_are_stored_and_errors_of_validation_are_not() -> Result<()> {
    let sim = Sim::start().await?;
    let item = |customer: &'static str| {
        let form = [("customer", customer), ("amount", "500"), ("currency", "usd")];
        sim.post("/v1/invoiceitems", &form).header("Idempotency-Key", "executed")
    };
    let first = read(item("cus_none").send().await?).await?;
    let again = item("cus_none").send().await?;
    assert_eq!(header(&again, "idempotent-replayed").as_deref(), Some("true"));
    assert_eq!(read(again).await?, first);

    let (status, _) = read(keyed(&sim, "v", &[("email", "nobody")]).send().await?).await?;
    assert_eq!(status, 400);
    let (status, _) = read(keyed(&sim, "v", &FORM).send().await?).await?;
    assert_eq!(status, 200);
    sim.stop().await
}

#[tokio::test]
async fn a_stored_500_is_replayed_whether_it_had_an_effect_or_not() -> Result<()> {
    let sim = Sim::start().await?;
    for (effect, count) in [(false, 0), (true, 1)] {
        let key = format!("k-{effect}");
        let fault = json!({ "outcome": { "kind": "stored_error", "effect": effect } });
        sim.admin("/faults", fault).await?;
        let first = read(keyed(&sim, &key, &FORM).send().await?).await?;
        assert_eq!((first.0, &first.1["error"]["type"]), (500, &json!("api_error")));
        let again = keyed(&sim, &key, &FORM).send().await?;
        assert_eq!(header(&again, "idempotent-replayed").as_deref(), Some("true"));
        assert_eq!(read(again).await?, first);
        assert_eq!(customer_count(&sim).await?, count);
    }
    sim.stop().await
}

#[tokio::test]
async fn a_key_is_forgotten_after_24_hours_and_not_before() -> Result<()> {
    let sim = Sim::start().await?;
    let first = id(&read(keyed(&sim, "k", &FORM).send().await?).await?.1)?;
    // A minute less, for the time the test takes.
    sim.advance(24 * 3600 - 60).await?;
    assert_eq!(id(&read(keyed(&sim, "k", &FORM).send().await?).await?.1)?, first);
    sim.advance(60).await?;
    ensure!(id(&read(keyed(&sim, "k", &FORM).send().await?).await?.1)? != first);
    sim.stop().await
}

#[tokio::test]
async fn keys_belong_to_one_api_key_and_have_no_effect_outside_of_post() -> Result<()> {
    let sim = Sim::start().await?;
    let first = id(&read(keyed(&sim, "k", &FORM).send().await?).await?.1)?;
    let other = sim
        .bare(Method::POST, "/v1/customers")
        .bearer_auth(format!("{KEY}2"))
        .form(&FORM)
        .header("Idempotency-Key", "k");
    ensure!(id(&read(other.send().await?).await?.1)? != first);

    for _ in 0..2 {
        let listed = sim.get("/v1/customers").header("Idempotency-Key", "k").send().await?;
        assert_eq!(header(&listed, "idempotent-replayed"), None);
        assert_eq!(listed.status(), 200);
    }
    let long = "k".repeat(256);
    assert_eq!(keyed(&sim, &long, &FORM).send().await?.status(), 400);
    assert_eq!(keyed(&sim, &long[1..], &FORM).send().await?.status(), 200);
    sim.stop().await
}
