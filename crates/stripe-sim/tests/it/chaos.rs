//! Faults by seed, and rate limits.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{Sim, header, id, read};

/// What 60 requests to make a customer come to, one after the other.
async fn sixty(sim: &Sim, seed: u64) -> Result<Vec<Option<u16>>> {
    let rates = json!({
        "drop_before": 0.1, "drop_after": 0.1, "error_500": 0.1, "stored_500_after": 0.1,
        "conflict": 0.05, "lock_timeout": 0.05, "rate_limit": 0.1, "delay": 0.2,
    });
    sim.admin("/chaos", json!({ "seed": seed, "rates": rates, "max_delay_ms": 2 })).await?;
    let mut statuses = Vec::new();
    for _ in 0..60 {
        let sent = sim.post("/v1/customers", &[]).send().await;
        statuses.push(sent.ok().map(|response| response.status().as_u16()));
    }
    Ok(statuses)
}

#[tokio::test]
async fn the_same_seed_strikes_the_same_requests() -> Result<()> {
    let sim = Sim::start().await?;
    let first = sixty(&sim, 1).await?;
    assert_eq!(first, sixty(&sim, 1).await?);
    ensure!(first != sixty(&sim, 2).await?);
    for status in [None, Some(200), Some(409), Some(429), Some(500)] {
        ensure!(first.contains(&status), "no {status:?}: {first:?}");
    }
    sim.bare(reqwest::Method::DELETE, "/_sim/chaos").send().await?;
    sim.customer().await?;
    ensure!(sim.admin("/chaos", json!({ "rates": { "conflict": 0.6, "rate_limit": 0.6 } })).await.is_err());
    sim.stop().await
}

#[tokio::test]
async fn through_chaos_a_key_makes_one_item_and_no_more() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let rates = json!({ "drop_before": 0.2, "drop_after": 0.2, "error_503": 0.2, "rate_limit": 0.2 });
    sim.admin("/chaos", json!({ "seed": 3, "path": "/v1/invoice*", "rates": rates })).await?;
    for number in 0..20 {
        let form = [("customer", customer.as_str()), ("amount", "5"), ("currency", "usd")];
        let key = format!("charge-{number}");
        let mut status = 0;
        while status != 200 {
            let sent = sim.post("/v1/invoiceitems", &form).header("Idempotency-Key", &key).send().await;
            status = sent.map_or(0, |response| response.status().as_u16());
        }
    }
    assert_eq!(sim.item_count().await?, 20);
    sim.stop().await
}

#[tokio::test]
async fn more_than_25_a_second_are_refused_by_the_clock_of_the_stand_in() -> Result<()> {
    let sim = Sim::start().await?;
    // Else the time that passes meanwhile would let more through; on a slow machine all of them.
    sim.freeze().await?;
    sim.admin("/limits", json!({ "per_endpoint": 25 })).await?;
    let post = async || anyhow::Ok(sim.post("/v1/customers", &[]).send().await?);
    for _ in 0..25 {
        assert_eq!(post().await?.status(), 200);
    }
    let refused = post().await?;
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "stripe-rate-limited-reason").as_deref(), Some("endpoint-rate"));
    assert_eq!(read(refused).await?.1["error"]["code"], "rate_limit");
    // Another endpoint has its own, and a second of the clock is enough.
    assert_eq!(sim.get("/v1/customers").send().await?.status(), 200);
    sim.advance(1).await?;
    assert_eq!(post().await?.status(), 200);
    sim.admin("/limits", json!({})).await?;
    sim.stop().await
}

#[tokio::test]
async fn the_clock_can_run_faster() -> Result<()> {
    let sim = Sim::start().await?;
    let now = async || anyhow::Ok(sim.read("/_sim/clock").await?["now"].as_i64().unwrap_or(0));
    sim.admin("/clock", json!({ "scale": 100_000 })).await?;
    let start = now().await?;
    // Until a day has passed, which takes less than a second.
    let day = async || {
        while now().await? < start + 86_400 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), day()).await??;
    let before = now().await?;
    sim.admin("/clock", json!({ "scale": 1 })).await?;
    ensure!(now().await? >= before);
    sim.stop().await
}

#[tokio::test]
async fn a_customer_can_be_held_to_another_currency() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    sim.admin(&format!("/customers/{customer}"), json!({ "currency": "EUR" })).await?;
    let form = [("customer", customer.as_str()), ("amount", "5"), ("currency", "usd")];
    let (status, body) = read(sim.post("/v1/invoiceitems", &form).send().await?).await?;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("currency")));
    sim.stop().await
}

#[tokio::test]
async fn people_see_what_there_is() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = id(&sim.create("/v1/customers", &[("email", "<b>@example.com")]).await?)?;
    let item = id(&sim.item(&customer, "5", &[("description", "\"5\" & more")]).await?)?;
    let subscription = id(&sim.subscription(&customer).await?)?;
    let response = sim.bare(reqwest::Method::GET, "/").send().await?;
    let policy = header(&response, "content-security-policy").unwrap_or_default();
    ensure!(policy.contains("default-src 'none'"), "{policy}");
    let page = response.text().await?;
    for shown in
        [&customer, &item, &subscription, "&lt;b&gt;@example.com", "&quot;5&quot; &amp; more", "invoice.paid"]
    {
        ensure!(page.contains(shown), "no {shown}: {page}");
    }
    let of_customer = sim.bare(reqwest::Method::GET, &format!("/?customer={customer}")).send().await?;
    ensure!(of_customer.text().await?.contains(&item));
    let object = sim.bare(reqwest::Method::GET, &format!("/object/{item}")).send().await?;
    ensure!(object.text().await?.contains("&quot;invoiceitem&quot;"));
    assert_eq!(sim.bare(reqwest::Method::GET, "/object/ii_none").send().await?.status(), 404);
    sim.stop().await
}
