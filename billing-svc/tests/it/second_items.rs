//! Items that a charge is on invoices with a second time, and that the ledger does not have: an older database was put back,
//! which knows nothing of them. A reconciliation that repairs takes them in, and the next run credits them.

use anyhow::{Context, Result, ensure};
use nexus_testkit::db::TestDb;
use serde_json::{Value, json};

use crate::{
    altered::{FAILED_OVER, agree, edit, item_of, refused},
    reconcile::{charged, copy, pairs, sql},
    support::{Billing, Sim, meter, until},
};

const LOST: &str = "delete from eco_overage_charges where eco_id = 'eco_a'";

fn customer(item: &Value) -> Result<&str> {
    item["customer"].as_str().context("a customer")
}

/// The account's charge of 10 cents is on final invoices so many times more.
async fn invoiced_again(sim: &Sim, times: usize) -> Result<Value> {
    let item = item_of(sim, "eco_a").await?;
    sim.invoice(customer(&item)?).await?;
    for _ in 0..times {
        copy(sim, &item, &[]).await?;
        sim.invoice(customer(&item)?).await?;
    }
    Ok(item)
}

async fn texts(sim: &Sim) -> Result<Vec<(i64, String)>> {
    let items = sim.items().await?;
    let of_a = items.iter().filter(|item| item["metadata"]["eco_id"] == "eco_a");
    of_a.map(|item| {
        let amount = item["amount"].as_i64().context("an amount")?;
        Ok((amount, item["description"].as_str().unwrap_or_default().to_owned()))
    })
    .collect()
}

#[tokio::test]
async fn a_charge_that_was_invoiced_several_times_is_credited_to_the_cent() -> Result<()> {
    for (times, is_lost) in [(1, false), (1, true), (3, false), (3, true)] {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
        invoiced_again(&sim, times).await?;
        if is_lost {
            sql(&db, LOST).await?;
            sql(&db, "update eco_usage_records set billed_micros = 0 where eco_id = 'eco_a'").await?;
        }
        sql(&db, FAILED_OVER).await?;
        let mut expected = vec![("eco_a", "ITEM_DUPLICATED"); times];
        if is_lost {
            expected.insert(0, ("eco_a", "ITEM_EXTRA"));
        }
        assert_eq!(billing.differences(false).await?, pairs(&expected));
        refused(&billing).await?;
        assert_eq!(billing.differences(true).await?, pairs(&expected));
        ensure!(billing.differences(true).await?.is_empty(), "nothing is left");
        // What is used meanwhile is charged as ever.
        meter(&db, "eco_a", 50).await?;
        let run = billing.run_all().await?;
        ensure!(run.errors.is_empty(), "{run:?}");
        agree(&billing, &sim, "eco_a", 15).await?;
        if times == 1 {
            let text = &texts(&sim).await?[2];
            assert_eq!((text.0, text.1.starts_with("Correction, invoiced twice: ")), (-10, true), "{text:?}");
        }
        billing.stop().await?;
    }
    Ok(())
}

/// The database that is put back knows neither the second item, nor what has taken it back since.
#[tokio::test]
async fn what_was_taken_back_before_is_not_taken_back_again() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    invoiced_again(&sim, 1).await?;
    billing.differences(true).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    let before = texts(&sim).await?;
    for lost in [LOST, "delete from eco_overage_charges where sequence > 1"] {
        sql(&db, lost).await?;
        sql(&db, "update eco_usage_records set billed_micros = coalesce((select sum(amount_micros) from eco_overage_charges), 0)").await?;
        sql(&db, FAILED_OVER).await?;
        ensure!(billing.differences(true).await?.len() >= 2);
        agree(&billing, &sim, "eco_a", 10).await?;
        assert_eq!(texts(&sim).await?, before, "{lost}");
    }
    billing.stop().await
}

/// Somebody has edited it before it was invoiced.
#[tokio::test]
async fn a_second_item_over_another_amount_is_credited_with_that() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    sim.invoice(customer(&item)?).await?;
    let second = copy(&sim, &item, &[]).await?;
    edit(&sim, &json!({ "id": second }), "amount=7").await?;
    sim.invoice(customer(&item)?).await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_DUPLICATED")]));
    assert_eq!(billing.run_all().await?.total_micros, -70_000);
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}

/// Nobody is asked for what is on it.
#[tokio::test]
async fn a_second_item_on_a_void_invoice_is_no_difference() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = invoiced_again(&sim, 0).await?;
    copy(&sim, &item, &[]).await?;
    let form = format!("customer={}&pending_invoice_items_behavior=include", customer(&item)?);
    let invoice = sim.create("invoices", &form).await?;
    sim.create(&format!("invoices/{invoice}/finalize"), "").await?;
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_a", "ITEM_DUPLICATED")]));
    sim.create(&format!("invoices/{invoice}/void"), "").await?;
    ensure!(billing.differences(true).await?.is_empty());
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await
}

/// Somebody has voided the first invoice, and made another one: which of the two is to be paid is a person's to say.
#[tokio::test]
async fn a_second_item_is_not_taken_back_where_the_first_one_is_void() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    let form = format!("customer={}&pending_invoice_items_behavior=include", customer(&item)?);
    let invoice = sim.create("invoices", &form).await?;
    for step in ["finalize", "void"] {
        sim.create(&format!("invoices/{invoice}/{step}"), "").await?;
    }
    copy(&sim, &item, &[]).await?;
    for is_invoiced in [false, true] {
        if is_invoiced {
            sim.invoice(customer(&item)?).await?;
        }
        let found = billing.differences(true).await?;
        ensure!(found.contains(&("eco_a".to_owned(), "ITEM_DUPLICATED".to_owned())), "{found:?}");
        assert_eq!(billing.run_all().await?.charged_count, 0);
    }
    assert_eq!(sim.amounts().await?, [10, 10]);
    billing.stop().await
}

/// Cut off before it has taken the last item in, by a server that has an earlier one in the ledger; two go on at once.
#[tokio::test]
async fn killed_amid_the_repair_the_others_go_on_and_nothing_is_credited_twice() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let doomed = charged(&db, &sim, &["eco_a"]).await?;
    invoiced_again(&sim, 2).await?;
    let (one, two) = (Billing::start(&db, &sim.base).await?, Billing::start(&db, &sim.base).await?);
    let mut row = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select from eco_usage_records for update").execute(&mut *row).await?;
    let call = {
        let client = doomed.client.clone();
        let request = nexus_proto::billing::v1::ReconcileRequest { repair: true, ..Default::default() };
        tokio::spawn(async move {
            client
                .clone()
                .reconcile(crate::support::runner()?.request(request))
                .await
                .map_err(anyhow::Error::from)
        })
    };
    until(
        &db,
        "select exists (select from pg_stat_activity
                        where datname = current_database() and wait_event_type = 'Lock')",
    )
    .await?;
    doomed.kill().await?;
    ensure!(call.await?.is_err(), "a killed server cannot have answered");
    row.rollback().await?;
    until(
        &db,
        "select not exists (select from pg_locks where locktype = 'advisory' and objid = 3 and objsubid = 2
                            and database = (select oid from pg_database where datname = current_database()))",
    )
    .await?;
    let request = || nexus_proto::billing::v1::ReconcileRequest { repair: true, ..Default::default() };
    let (first, second) = tokio::join!(one.reconcile(request()), two.reconcile(request()));
    ensure!(!first?.already_running || !second?.already_running);
    one.differences(true).await?;
    let (first, second) = tokio::join!(one.run_all(), two.run_all());
    ensure!(first?.errors.is_empty() && second?.errors.is_empty());
    one.run_all().await?;
    agree(&one, &sim, "eco_a", 10).await?;
    one.stop().await?;
    two.stop().await
}
