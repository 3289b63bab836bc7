//! Pagination and filters.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::harness::{Sim, id, ids, read};

#[tokio::test]
async fn pages_are_newest_first_and_follow_cursors_both_ways() -> Result<()> {
    let sim = Sim::start().await?;
    let mut newest_first = Vec::new();
    for _ in 0..12 {
        newest_first.insert(0, sim.customer().await?);
    }
    let first = sim.read("/v1/customers").await?;
    assert_eq!(ids(&first)?, newest_first[..10]);
    assert_eq!((&first["has_more"], &first["url"]), (&json!(true), &json!("/v1/customers")));

    let after = |cursor: &str| format!("/v1/customers?limit=5&starting_after={cursor}");
    let second = sim.read(&after(&newest_first[4])).await?;
    assert_eq!((ids(&second)?, &second["has_more"]), (newest_first[5..10].to_vec(), &json!(true)));
    let last = sim.read(&after(&newest_first[6])).await?;
    assert_eq!((ids(&last)?, &last["has_more"]), (newest_first[7..].to_vec(), &json!(false)));

    let before = |cursor: &str| format!("/v1/customers?limit=5&ending_before={cursor}");
    let back = sim.read(&before(&newest_first[7])).await?;
    assert_eq!((ids(&back)?, &back["has_more"]), (newest_first[2..7].to_vec(), &json!(true)));
    let back = sim.read(&before(&newest_first[5])).await?;
    assert_eq!((ids(&back)?, &back["has_more"]), (newest_first[..5].to_vec(), &json!(false)));
    sim.stop().await
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let both = format!("starting_after={customer}&ending_before={customer}");
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("starting_after=cus_none", "starting_after"),
        (&both, "starting_after"),
        ("page=2", "page"),
    ] {
        let (status, body) = read(sim.get(&format!("/v1/customers?{query}")).send().await?).await?;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{query}");
    }
    sim.stop().await
}

#[tokio::test]
async fn invoice_items_are_found_by_customer_invoice_state_and_time() -> Result<()> {
    let sim = Sim::start().await?;
    let (one, two) = (sim.customer().await?, sim.customer().await?);
    let pending = id(&sim.item(&one, "1", &[]).await?)?;
    let other = id(&sim.item(&two, "2", &[]).await?)?;
    let invoice = id(&sim.create("/v1/invoices", &[("customer", &one)]).await?)?;
    sim.advance(100).await?;
    let attached = sim.item(&one, "3", &[("invoice", &invoice)]).await?;
    let date = attached["date"].as_i64().context("date")?;
    let attached = id(&attached)?;

    for (query, found) in [
        (format!("customer={one}"), vec![&attached, &pending]),
        (format!("customer={one}&pending=true"), vec![&pending]),
        (format!("customer={one}&pending=false"), vec![&attached]),
        (format!("invoice={invoice}"), vec![&attached]),
        (format!("customer={two}"), vec![&other]),
        (format!("created[gte]={date}"), vec![&attached]),
        (format!("created[lt]={date}"), vec![&other, &pending]),
        (format!("created={date}"), vec![&attached]),
    ] {
        let list = sim.read(&format!("/v1/invoiceitems?{query}")).await?;
        assert_eq!(ids(&list)?.iter().collect::<Vec<_>>(), found, "{query}");
    }
    sim.stop().await
}
