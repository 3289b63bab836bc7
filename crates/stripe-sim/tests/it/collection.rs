//! Invoices that are collected by themselves, or no longer; and what is told of them.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::harness::{Sim, id, read};

/// A draft of 500 cents that was made by request.
async fn draft(sim: &Sim, customer: &str, more: &[(&str, &str)]) -> Result<String> {
    let mut form = vec![("customer", customer)];
    form.extend_from_slice(more);
    let invoice = id(&sim.create("/v1/invoices", &form).await?)?;
    sim.item(customer, "500", &[("invoice", &invoice)]).await?;
    Ok(invoice)
}

async fn invoice(sim: &Sim, invoice: &str) -> Result<Value> {
    sim.read(&format!("/v1/invoices/{invoice}")).await
}

/// The newest event of a type.
async fn event(sim: &Sim, kind: &str) -> Result<Value> {
    let list = sim.read(&format!("/v1/events?type={kind}&limit=1")).await?;
    Ok(list["data"][0]["data"].clone())
}

#[tokio::test]
async fn what_is_finalised_by_request_is_open_and_collected_an_hour_later_if_it_advances() -> Result<()> {
    let sim = Sim::start().await?;
    sim.freeze().await?;
    let customer = sim.customer().await?;
    for (auto_advance, expected) in [("true", "paid"), ("false", "open")] {
        let draft = draft(&sim, &customer, &[]).await?;
        let finalize = format!("/v1/invoices/{draft}/finalize");
        let open = sim.create(&finalize, &[("auto_advance", auto_advance)]).await?;
        assert_eq!((&open["status"], &open["attempted"]), (&json!("open"), &json!(false)));
        sim.advance(3_599).await?;
        assert_eq!(invoice(&sim, &draft).await?["status"], "open");
        sim.advance(1).await?;
        let later = invoice(&sim, &draft).await?;
        assert_eq!((&later["status"], &later["auto_advance"]), (&json!(expected), &json!(false)));
    }
    sim.stop().await
}

#[tokio::test]
async fn only_a_draft_or_an_open_invoice_can_be_told_to_advance() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let draft = draft(&sim, &customer, &[]).await?;
    let path = format!("/v1/invoices/{draft}");
    let scheduled = sim.create(&path, &[("auto_advance", "true")]).await?;
    let created = scheduled["created"].as_i64().context("created")?;
    assert!(scheduled["automatically_finalizes_at"].as_i64().is_some_and(|at| at >= created + 3600));
    let stopped = sim.create(&path, &[("auto_advance", "false")]).await?;
    assert_eq!(stopped["automatically_finalizes_at"], Value::Null);
    sim.create(&format!("{path}/finalize"), &[]).await?;
    sim.create(&path, &[("auto_advance", "true")]).await?;
    sim.advance(3601).await?;
    assert_eq!(invoice(&sim, &draft).await?["status"], "paid");
    let (status, body) = read(sim.post(&path, &[("auto_advance", "true")]).send().await?).await?;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("auto_advance")));
    sim.stop().await
}

#[tokio::test]
async fn a_canceled_subscription_ends_the_collection_of_what_is_open() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let subscription = id(&sim.subscription(&customer).await?)?;
    sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": true })).await?;
    let draft = draft(&sim, &customer, &[("auto_advance", "true")]).await?;
    sim.advance(3601).await?;
    let failed = invoice(&sim, &draft).await?;
    assert_eq!((&failed["status"], &failed["attempt_count"]), (&json!("open"), &json!(1)));
    let path = format!("/v1/subscriptions/{subscription}");
    for refused in ["invoice_now", "prorate"] {
        let (status, body) = read(sim.delete(&format!("{path}?{refused}=true")).send().await?).await?;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(refused)));
    }
    assert_eq!(sim.delete(&path).send().await?.status(), 200);
    sim.admin(&format!("/customers/{customer}"), json!({ "payment_fails": false })).await?;
    sim.advance(30 * 86_400).await?;
    let left = invoice(&sim, &draft).await?;
    assert_eq!((&left["status"], &left["auto_advance"]), (&json!("open"), &json!(false)));
    // Until somebody has it collected again.
    sim.create(&format!("/v1/invoices/{draft}"), &[("auto_advance", "true")]).await?;
    sim.advance(3601).await?;
    assert_eq!(invoice(&sim, &draft).await?["status"], "paid");
    sim.stop().await
}

#[tokio::test]
async fn a_void_invoice_gives_the_balance_back() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = id(&sim.create("/v1/customers", &[("balance", "-300")]).await?)?;
    let draft = draft(&sim, &customer, &[]).await?;
    let open = sim.create(&format!("/v1/invoices/{draft}/finalize"), &[]).await?;
    assert_eq!((&open["amount_due"], &open["ending_balance"]), (&json!(200), &json!(0)));
    let balance =
        async || anyhow::Ok(sim.read(&format!("/v1/customers/{customer}")).await?["balance"].clone());
    assert_eq!(balance().await?, 0);
    sim.create(&format!("/v1/invoices/{draft}/void"), &[]).await?;
    assert_eq!(balance().await?, -300);
    sim.stop().await
}

#[tokio::test]
async fn what_changes_on_a_draft_is_told_of() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let draft = draft(&sim, &customer, &[]).await?;
    let told = async |total: i64, before: i64| {
        let told = event(&sim, "invoice.updated").await?;
        assert_eq!(told["object"]["total"], total);
        assert_eq!(told["previous_attributes"]["total"], before);
        anyhow::Ok(())
    };
    told(500, 0).await?;
    let pending = id(&sim.item(&customer, "7", &[]).await?)?;
    let line = [("lines[0][invoice_item]", pending.as_str())];
    sim.create(&format!("/v1/invoices/{draft}/add_lines"), &line).await?;
    told(507, 500).await?;
    sim.create(&format!("/v1/invoiceitems/{pending}"), &[("amount", "9")]).await?;
    told(509, 507).await?;
    sim.delete(&format!("/v1/invoiceitems/{pending}")).send().await?;
    told(500, 509).await?;
    sim.stop().await
}
