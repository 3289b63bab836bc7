//! Invoices and the items on them.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::harness::{Sim, id, ids, read};

async fn invoice(sim: &Sim, customer: &str, more: &[(&str, &str)]) -> Result<Value> {
    let mut form = vec![("customer", customer)];
    form.extend_from_slice(more);
    sim.create("/v1/invoices", &form).await
}

fn lines(invoice: &Value) -> Result<Vec<i64>> {
    let data = invoice["lines"]["data"].as_array().context("lines")?;
    data.iter().map(|line| line["amount"].as_i64().context("amount")).collect()
}

#[tokio::test]
async fn pending_items_are_pulled_only_when_asked_for() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    sim.item(&customer, "100", &[]).await?;
    sim.item(&customer, "200", &[]).await?;

    let empty = invoice(&sim, &customer, &[]).await?;
    assert_eq!((lines(&empty)?, &empty["total"]), (vec![], &json!(0)));
    let include = [("pending_invoice_items_behavior", "include")];
    let full = invoice(&sim, &customer, &include).await?;
    // Pulled items newest first, later ones after them.
    sim.item(&customer, "50", &[("invoice", &id(&full)?)]).await?;
    let full = sim.read(&format!("/v1/invoices/{}", id(&full)?)).await?;
    assert_eq!((lines(&full)?, &full["total"]), (vec![200, 100, 50], &json!(350)));

    let form = [("customer", customer.as_str()), include[0]];
    let (status, body) = read(sim.post("/v1/invoices", &form).send().await?).await?;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invoice_no_customer_line_items")));
    sim.stop().await
}

#[tokio::test]
async fn pending_items_are_added_to_a_draft_all_or_none() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let (first, second) = (sim.item(&customer, "100", &[]).await?, sim.item(&customer, "200", &[]).await?);
    let (first, second) = (id(&first)?, id(&second)?);
    let draft = id(&invoice(&sim, &customer, &[]).await?)?;
    let path = format!("/v1/invoices/{draft}/add_lines");
    let line = |n: usize| format!("lines[{n}][invoice_item]");
    let added = sim.create(&path, &[(line(0).as_str(), first.as_str())]).await?;
    assert_eq!(lines(&added)?, [100]);
    let (zeroth, other) = (line(0), line(1));
    for more in [
        Some((other.as_str(), first.as_str())),
        Some((&other, "ii_none")),
        Some(("lines[1][amount]", "5")),
        None,
    ] {
        let form: Vec<_> =
            more.map(|more| [(zeroth.as_str(), second.as_str()), more]).into_iter().flatten().collect();
        let (status, _) = read(sim.post(&path, &form).send().await?).await?;
        assert_eq!(status, 400, "{form:?}");
    }
    assert_eq!(lines(&sim.read(&format!("/v1/invoices/{draft}")).await?)?, [100]);
    sim.create(&format!("/v1/invoices/{draft}/finalize"), &[]).await?;
    let (status, body) = read(sim.post(&path, &[(zeroth.as_str(), second.as_str())]).send().await?).await?;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invoice_not_editable")));
    sim.stop().await
}

#[tokio::test]
async fn an_invoice_of_a_subscription_takes_its_items_only() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let subscription = id(&sim.subscription(&customer).await?)?;
    sim.item(&customer, "100", &[]).await?;
    sim.item(&customer, "200", &[("subscription", &subscription)]).await?;
    let taken = invoice(&sim, &customer, &[("subscription", &subscription)]).await?;
    assert_eq!(lines(&taken)?, [200]);
    let form = [("customer", customer.as_str()), ("subscription", subscription.as_str())];
    let (status, body) = read(sim.post("/v1/invoices", &form).send().await?).await?;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invoice_no_subscription_line_items")));
    sim.stop().await
}

#[tokio::test]
async fn what_is_finalized_does_not_change_any_more() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let draft = id(&invoice(&sim, &customer, &[]).await?)?;
    let item = id(&sim.item(&customer, "100", &[("invoice", &draft)]).await?)?;
    let item_path = format!("/v1/invoiceitems/{item}");
    sim.create(&item_path, &[("amount", "150")]).await?;
    let open = sim.create(&format!("/v1/invoices/{draft}/finalize"), &[]).await?;
    assert_eq!((&open["status"], &open["amount_due"]), (&json!("open"), &json!(150)));

    let form = [("customer", customer.as_str()), ("amount", "1"), ("currency", "usd"), ("invoice", &draft)];
    for request in [
        sim.post(&item_path, &[("amount", "1")]),
        sim.delete(&item_path),
        sim.post("/v1/invoiceitems", &form),
        sim.post(&format!("/v1/invoices/{draft}/finalize"), &[]),
    ] {
        let (status, body) = read(request.send().await?).await?;
        assert_eq!((status, &body["error"]["code"]), (400, &json!("invoice_not_editable")));
    }
    sim.admin(&format!("/customers/{customer}"), json!({ "declined": true })).await?;
    let pay = format!("/v1/invoices/{draft}/pay");
    assert_eq!(sim.post(&pay, &[]).send().await?.status(), 402);
    let still = sim.read(&format!("/v1/invoices/{draft}")).await?;
    assert_eq!((&still["status"], &still["total"]), (&json!("open"), &json!(150)));
    sim.stop().await
}

#[tokio::test]
async fn an_invoice_takes_250_items_and_no_more() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    for _ in 0..251 {
        sim.item(&customer, "1", &[]).await?;
    }
    let include = [("pending_invoice_items_behavior", "include")];
    let full = invoice(&sim, &customer, &include).await?;
    assert_eq!((&full["total"], &full["lines"]["has_more"]), (&json!(250), &json!(true)));
    let pending = sim.read(&format!("/v1/invoiceitems?customer={customer}&pending=true")).await?;
    assert_eq!(ids(&pending)?.len(), 1);

    let invoice = id(&full)?;
    let form = [("customer", customer.as_str()), ("amount", "1"), ("currency", "usd"), ("invoice", &invoice)];
    assert_eq!(sim.post("/v1/invoiceitems", &form).send().await?.status(), 400);
    let last = sim.read(&format!("/v1/invoices/{invoice}/lines?limit=100")).await?;
    assert_eq!(ids(&last)?.len(), 100);
    sim.stop().await
}

#[tokio::test]
async fn a_customer_keeps_to_one_currency() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    // A refused request binds nothing.
    let form =
        [("customer", customer.as_str()), ("amount", "1"), ("currency", "eur"), ("invoice", "in_none")];
    assert_eq!(sim.post("/v1/invoiceitems", &form).send().await?.status(), 400);
    sim.item(&customer, "100", &[]).await?;
    let (status, body) = read(sim.post("/v1/invoiceitems", &form[..3]).send().await?).await?;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("currency")));
    assert_eq!(sim.read(&format!("/v1/customers/{customer}")).await?["currency"], "usd");
    assert_eq!(sim.item_count().await?, 1);
    sim.stop().await
}
