//! Items at Stripe that say that they are an account's, and cannot be: nothing of them is charged to it, nor credited.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use nexus_billing::{
    domain::{
        charge::{InvoiceItem, charge_id},
        reconciliation::Kind,
    },
    payments::Payments,
};
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::{Difference, ProcessOverageRequest, ReconcileRequest};
use nexus_testkit::{db::TestDb, seed};
use uuid::Uuid;

use crate::{
    altered::{FAILED_OVER, agree, item_of},
    lost_events::World,
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
    let all = ProcessOverageRequest::default();
    for request in [ProcessOverageRequest { dry_run: true, ..all.clone() }, all] {
        let run = billing.run(request).await?;
        let reasons: Vec<_> = run.errors.iter().map(|e| (e.eco_id.as_str(), e.reason.as_str())).collect();
        assert_eq!((run.charged_count, reasons), (0, vec![("eco_lost", "ACCOUNT_WITHHELD")]));
    }
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_lost", "ITEM_EXTRA")]));
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (0, 0), "{run:?}");
    agree(&billing, &sim, "eco_lost", 10).await?;
    billing.stop().await
}

/// A void invoice is asked of nobody.
#[tokio::test]
async fn a_stray_item_is_named_until_its_invoice_is_void() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    let of_b = item_of(&sim, "eco_b").await?["customer"].as_str().context("a customer")?.to_owned();
    let other = Uuid::from_u128(7).to_string();
    let moved = [("customer", of_b.as_str()), ("metadata[charge_id]", other.as_str())];
    sim.invoice(&of_b).await?;
    let stray = copy(&sim, &item_of(&sim, "eco_a").await?, &moved).await?;
    sim.invoice(&of_b).await?;
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_a", "ITEM_STRAY")]));
    let items = sim.items().await?;
    let item = items.iter().find(|item| item["id"] == *stray).context("the item")?;
    sim.create(&format!("invoices/{}/void", item["invoice"].as_str().context("an invoice")?), "").await?;
    ensure!(billing.differences(false).await?.is_empty());
    billing.stop().await
}

/// Its charge is older than what is listed every day.
#[tokio::test]
async fn a_withheld_account_stays_so_however_old_its_item_is() -> Result<()> {
    let world = World::new().await?;
    world.memory.add_customer("cus_lost");
    let item = InvoiceItem {
        customer: "cus_lost".to_owned(),
        subscription: None,
        invoice: None,
        amount_minor: 10,
        currency: "USD".to_owned(),
        description: "API overage".to_owned(),
        metadata: [("charge_id", Uuid::from_u128(7).to_string()), ("eco_id", "eco_lost".to_owned())]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
    };
    world.memory.create_invoice_item(&item, "key").await;
    ensure!(world.differences(false).await?.is_empty(), "it is of long ago");
    sql(&world.db, FAILED_OVER).await?;
    for _ in 0..3 {
        let told = world.differences(false).await?;
        assert_eq!(told, [("eco_lost".to_owned(), Kind::ItemOfNoAccount, false)]);
        let withheld: Vec<String> =
            sqlx::query_scalar("select eco_id from eco_withheld_accounts").fetch_all(&world.db.pool).await?;
        assert_eq!(withheld, ["eco_lost"]);
    }
    Ok(())
}

/// The number that it had is another charge's by now.
#[tokio::test]
async fn a_lost_charge_is_taken_in_also_where_its_number_is_taken() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    let period = sqlx::query_as::<_, (DateTime<Utc>, DateTime<Utc>)>(
        "select period_start, period_end from eco_usage_records",
    );
    let (start, end) = period.fetch_one(&db.pool).await?;
    let second = charge_id("eco_a", nexus_core::period::Period { start, end }, 2).to_string();
    for named in [Uuid::from_u128(7).to_string(), second] {
        copy(&sim, &item, &[("metadata[charge_id]", named.as_str())]).await?;
        assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_EXTRA")]), "{named}");
        ensure!(billing.differences(false).await?.is_empty(), "{named}");
    }
    // Of which the account owed one.
    assert_eq!(billing.run_all().await?.charged_count, 1);
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}
