//! Invoices of our own that go no further: what Stripe refuses for good, what a person does about it, and what a database
//! that was restored knows nothing of.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use nexus_billing::app::{
    clear_ended::{self, Standing},
    process_overage::{ChargeContext, charge_account},
    refresh,
};
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};

use crate::{
    memory::{Fault, Memory},
    settlements::{charging, clear, end_subscription, invoices, periods, stripe},
    support::{Billing, Sim, anchor, record},
};

/// An account that owes a dollar, which is pending, when its subscription ends.
async fn owing_a_dollar() -> Result<(TestDb, Sim)> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    billing.stop().await?;
    sim.cancel(&subscription).await?;
    end_subscription(&db, 1_000).await?;
    Ok((db, sim))
}

/// What is told where an invoice goes no further.
async fn stuck(context: &ChargeContext) -> Result<String> {
    let (standing, result) = clear_ended::run(context, "eco_a").await?;
    let error = result.error.context("it goes no further")?;
    ensure!((standing, error.reason.as_str()) == (Standing::Failed, "SETTLEMENT_STUCK"), "{error:?}");
    Ok(error.message)
}

/// Requests about one invoice.
async fn refuse(sim: &Sim, outcome: Value, times: u32) -> Result<()> {
    let fault = json!({ "method": "POST", "path": "/v1/invoices/*", "times": times, "outcome": outcome });
    sim.admin("/faults", fault).await?;
    Ok(())
}

fn refusal() -> Value {
    json!({ "kind": "error", "status": 400, "type": "invalid_request_error", "message": "Not this way." })
}

#[tokio::test]
async fn a_draft_that_stripe_would_not_finalise_and_a_person_deleted_is_made_anew() -> Result<()> {
    let (db, sim) = owing_a_dollar().await?;
    let context = stripe(&db, &sim)?;
    refuse(&sim, json!({ "kind": "normal" }), 1).await?;
    refuse(&sim, refusal(), 1).await?;
    assert!(stuck(&context).await?.ends_with("Not this way."));
    assert_eq!(invoices(&sim).await?, [("draft".to_owned(), vec![100])]);
    let draft = sim.made_invoices().await?[0]["id"].as_str().context("an id")?.to_owned();
    sim.delete(&format!("invoices/{draft}")).await?;
    clear(&context).await?;
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![100])]);
    Ok(())
}

#[tokio::test]
async fn why_stripe_takes_no_items_on_a_draft_is_told() -> Result<()> {
    let (db, sim) = owing_a_dollar().await?;
    let context = stripe(&db, &sim)?;
    refuse(&sim, refusal(), 2).await?;
    assert!(stuck(&context).await?.ends_with("Not this way."));
    clear(&context).await?;
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![100])]);
    Ok(())
}

/// A run and a worker meet in one settlement: one lists what is pending after the other has put it on the draft.
#[tokio::test]
async fn who_finds_nothing_pending_finalises_what_another_has_filled() -> Result<()> {
    let (db, sim) = owing_a_dollar().await?;
    let (slow, quick) = (stripe(&db, &sim)?, stripe(&db, &sim)?);
    let listing = |times: u32, hold: bool| json!({ "method": "GET", "path": "/v1/invoiceitems", "times": times, "hold": hold });
    // Where it is, twice; then what is pending.
    sim.admin("/faults", listing(2, false)).await?;
    sim.admin("/faults", listing(1, true)).await?;
    let slow = tokio::spawn(async move { clear(&slow).await });
    sim.read("/held").await?;
    refuse(&sim, json!({ "kind": "normal" }), 1).await?;
    refuse(&sim, json!({ "kind": "error", "status": 503 }), 100).await?;
    let (standing, _) = clear_ended::run(&quick, "eco_a").await?;
    assert_eq!(standing, Standing::Failed);
    assert_eq!(invoices(&sim).await?, [("draft".to_owned(), vec![100])]);
    sim.call(Method::DELETE, "/_sim/faults", "application/json", String::new()).await?;
    sim.admin("/release", json!({})).await?;
    slow.await??;
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![100])]);
    Ok(())
}

/// The draft has the items, and no settlement is there to finalise it.
#[tokio::test]
async fn a_draft_whose_settlement_a_failover_has_lost_gives_its_charges_back() -> Result<()> {
    let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
    memory.add_customer("cus_1");
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
    record(&db, "eco_a", 105_000).await?;
    let context = charging(&db, memory.clone())?;
    refresh::drain(&context.pool).await?;
    ensure!(charge_account(&context, &periods(&db).await?).await.charged);
    end_subscription(&db, 5_000).await?;
    memory.fail_next(Fault::None);
    memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        cleared = clear(&context) => anyhow::bail!("it ended: {cleared:?}"),
        () = memory.until_unanswered(1) => {}
    }
    sqlx::query("delete from eco_settlements").execute(&db.pool).await?;
    clear(&context).await?;
    let ids: Vec<String> = memory.items().into_iter().map(|(id, _)| id).collect();
    assert_eq!((ids.len(), memory.finalised()), (1, vec![ids]));
    Ok(())
}
