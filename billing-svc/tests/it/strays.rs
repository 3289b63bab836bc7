//! Items at Stripe that say that they are an account's, and cannot be: nothing of them is charged to it, nor credited.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use nexus_billing::domain::charge::charge_id;
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::{Difference, ReconcileRequest};
use nexus_testkit::{db::TestDb, seed};
use uuid::Uuid;

use crate::{
    altered::{FAILED_OVER, agree, item_of},
    reconcile::{charged, copy, pairs, sql},
    support::{Billing, Sim, meter},
};

async fn found(billing: &Billing, repair: bool) -> Result<Vec<Difference>> {
    Ok(billing.reconcile(ReconcileRequest { repair, ..Default::default() }).await?.differences)
}

#[tokio::test]
async fn an_item_on_another_accounts_customer_is_named_and_never_credited() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    let of_b = item_of(&sim, "eco_b").await?["customer"].as_str().context("a customer")?.to_owned();
    let other = Uuid::from_u128(7).to_string();
    let moved = [("customer", of_b.as_str()), ("metadata[charge_id]", other.as_str())];
    copy(&sim, &item, &moved).await?;
    let stray = pairs(&[("eco_a", "ITEM_STRAY")]);
    assert_eq!(billing.differences(false).await?, stray);
    // It waits for an invoice: nobody misses it.
    assert_eq!(billing.differences(true).await?, stray);
    agree(&billing, &sim, "eco_a", 10).await?;
    let finals: [&[(&str, &str)]; 2] = [&moved, &moved[..1]];
    for (so_far, changed) in (1..).zip(finals) {
        copy(&sim, &item, changed).await?;
        sim.invoice(&of_b).await?;
        sql(&db, FAILED_OVER).await?;
        let left = found(&billing, true).await?;
        assert_eq!(left.len(), so_far, "{left:?}");
        for difference in left {
            assert_eq!((difference.kind.as_str(), difference.repaired), ("ITEM_STRAY", false));
            ensure!(difference.message.ends_with("void its invoice, or credit it there."), "{difference:?}");
        }
        // It holds up nobody, and nobody is credited for it.
        let run = billing.run_all().await?;
        assert_eq!((run.charged_count, run.errors.len()), (0, 0), "{run:?}");
    }
    billing.stop().await
}

#[tokio::test]
async fn an_item_in_another_currency_is_never_taken_over() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    let customer = sim.pro(&db, "eco_c").await?;
    let other = Uuid::from_u128(7).to_string();
    let changed = [
        ("customer", customer.as_str()),
        ("currency", "jpy"),
        ("metadata[charge_id]", other.as_str()),
        ("metadata[eco_id]", "eco_c"),
    ];
    copy(&sim, &item, &changed).await?;
    sim.invoice(&customer).await?;
    sql(&db, FAILED_OVER).await?;
    for _ in 0..2 {
        assert_eq!(billing.differences(true).await?, pairs(&[("eco_c", "ITEM_STRAY")]));
        assert_eq!(billing.run_all().await?.charged_count, 0);
    }
    billing.stop().await
}

/// A restore has lost an account that was made, and charged, after the backup.
#[tokio::test]
async fn an_account_that_is_lost_holds_up_nobody_and_is_charged_only_once_it_is_reconciled() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let start: DateTime<Utc> =
        sqlx::query_scalar("select period_start from eco_usage_records").fetch_one(&db.pool).await?;
    let end: DateTime<Utc> =
        sqlx::query_scalar("select period_end from eco_usage_records").fetch_one(&db.pool).await?;
    let customer = sim.customer().await?;
    let lost = charge_id("eco_lost", nexus_core::period::Period { start, end }, 1).to_string();
    let changed = [
        ("customer", customer.as_str()),
        ("metadata[charge_id]", lost.as_str()),
        ("metadata[eco_id]", "eco_lost"),
    ];
    copy(&sim, &item_of(&sim, "eco_a").await?, &changed).await?;
    sim.invoice(&customer).await?;
    sql(&db, FAILED_OVER).await?;
    let left = found(&billing, true).await?;
    assert_eq!(
        (left.len(), left[0].eco_id.as_str(), left[0].kind.as_str()),
        (1, "eco_lost", "ITEM_OF_NO_ACCOUNT")
    );
    let way_out = format!("Create the account again, under this id and with customer {customer}, and repair");
    ensure!(left[0].message.contains(&way_out), "{left:?}");
    meter(&db, "eco_a", 50).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1, "the others are charged");

    // It comes back, first without its customer, and what it used is counted again.
    seed::account(&db.pool, "eco_lost", Plan::Pro, start).await?;
    meter(&db, "eco_lost", 100_100).await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_lost", "ITEM_STRAY")]));
    seed::stripe_ids(&db.pool, "eco_lost", &customer, None).await?;
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_lost", "ITEM_EXTRA")]));
    let run = billing.run_all().await?;
    let reasons: Vec<_> = run.errors.iter().map(|e| (e.eco_id.as_str(), e.reason.as_str())).collect();
    assert_eq!((run.charged_count, reasons), (0, vec![("eco_lost", "ACCOUNT_WITHHELD")]));
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_lost", "ITEM_EXTRA")]));
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (0, 0), "{run:?}");
    agree(&billing, &sim, "eco_lost", 10).await?;
    billing.stop().await
}
