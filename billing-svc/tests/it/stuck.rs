//! Invoices of our own that go no further: what Stripe refuses for good, what a person does about it, and what a database
//! that was restored knows nothing of.

use anyhow::{Context, Result, ensure};
use hyper::Method;
use nexus_billing::app::{
    clear_ended::{self, Standing},
    process_overage::ChargeContext,
};
use nexus_proto::billing::v1::ReconcileRequest;
use nexus_testkit::db::TestDb;
use serde_json::{Value, json};

use crate::{
    settlement_world::{Subscribed, clear, end_subscription, invoices, owing_a_dollar, stripe},
    support::{Billing, Sim, meter},
};

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
    let subscribed = Subscribed::new().await?;
    subscribed.record(105_000).await?;
    subscribed.charge().await?;
    end_subscription(&subscribed.db, 5_000).await?;
    subscribed.killed(1, clear(&subscribed.context)).await?;
    sqlx::query("delete from eco_settlements").execute(&subscribed.db.pool).await?;
    clear(&subscribed.context).await?;
    subscribed.is_collected()
}

/// Listed before its item was deleted, it seems to have been made after all.
#[tokio::test]
async fn a_reconciliation_does_not_bring_back_what_was_taken_back() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    meter(&db, "eco_a", 101_000).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    for statement in [
        "update eco_overage_charges set status = 'failed', stripe_invoice_item_id = null, failure_reason = 'TAKEN_BACK'",
        "update eco_usage_records set billed_micros = 0",
    ] {
        sqlx::query(statement).execute(&db.pool).await?;
    }
    let found = billing.reconciled(ReconcileRequest { repair: true, ..Default::default() }).await?;
    let repaired: Vec<_> = found.differences.iter().map(|it| (it.kind.as_str(), it.repaired)).collect();
    assert_eq!(repaired, [("ITEM_EXTRA", false)]);
    assert_eq!(billing.overage("eco_a").await?.billed_micros, 0);
    billing.stop().await
}
