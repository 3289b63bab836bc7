//! What somebody deleted or edited at Stripe: a reconciliation that repairs brings the ledger to it, and the next run charges
//! or credits what is missing then, so that Stripe holds what is due; nobody else's charges wait for it.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use hyper::Method;
use nexus_kit::status::reason;
use nexus_proto::billing::v1::ProcessOverageRequest;
use nexus_testkit::db::TestDb;
use serde_json::Value;

use crate::{
    reconcile::{charged, copy, pairs, sql},
    settlement_world::{clear, end_subscription, invoices, stripe, subscribed},
    support::{Billing, FORM, Sim, meter, only, record, runner},
};

/// Another server has taken over.
pub(crate) const FAILED_OVER: &str = "update eco_database_identity set timeline_id = timeline_id + 1";

pub(crate) async fn item_of(sim: &Sim, eco_id: &str) -> Result<Value> {
    let items = sim.items().await?;
    items.into_iter().find(|item| item["metadata"]["eco_id"] == *eco_id).context("an item")
}

pub(crate) fn id(item: &Value) -> Result<&str> {
    item["id"].as_str().context("an id")
}

pub(crate) async fn edit(sim: &Sim, item: &Value, form: &str) -> Result<()> {
    sim.call(Method::POST, &format!("/v1/invoiceitems/{}", id(item)?), FORM, form.to_owned()).await?;
    Ok(())
}

pub(crate) async fn refused(billing: &Billing) -> Result<()> {
    let request = runner()?.request(ProcessOverageRequest::default());
    let refused = billing.client.clone().process_overage(request).await.err().context("a refusal")?;
    assert_eq!(reason(&refused), "RECONCILE_REQUIRED");
    Ok(())
}

/// Both sides agree, and an account's items add up to so many cents.
pub(crate) async fn agree(billing: &Billing, sim: &Sim, eco_id: &str, cents: i64) -> Result<()> {
    let found = billing.differences(false).await?;
    ensure!(found.is_empty(), "{found:?}");
    assert_eq!(billing.run_all().await?.charged_count, 0);
    let items = sim.items().await?;
    let of_account = items.iter().filter(|item| item["metadata"]["eco_id"] == *eco_id);
    assert_eq!(of_account.filter_map(|item| item["amount"].as_i64()).sum::<i64>(), cents);
    Ok(())
}

/// The item is deleted at Stripe, and the failover loses that it was.
#[tokio::test]
async fn a_charge_that_was_being_taken_back_at_a_failover_holds_up_nobody() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let (customer, subscription, _) = subscribed(&db, &sim).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    let form =
        format!("customer={customer}&subscription={subscription}&pending_invoice_items_behavior=include");
    sim.create("invoices", &form).await?;
    sim.cancel(&subscription).await?;
    sql(
        &db,
        "update eco_overage_charges set take_back_time = now(), finished_time = now() - interval '1 minute'",
    )
    .await?;
    sim.delete(&format!("invoiceitems/{}", id(&item_of(&sim, "eco_a").await?)?)).await?;
    sql(&db, FAILED_OVER).await?;
    end_subscription(&db, 1_000).await?;
    sim.pro(&db, "eco_b").await?;
    meter(&db, "eco_b", 100_100).await?;

    refused(&billing).await?;
    let of_items: Vec<_> = billing.differences(false).await?;
    assert!(of_items.iter().all(|(_, kind)| !kind.starts_with("ITEM")), "{of_items:?}");
    ensure!(billing.run_all().await?.errors.is_empty());
    clear(&stripe(&db, &sim)?).await?;
    assert_eq!(invoices(&sim).await?, [("draft".to_owned(), vec![]), ("open".to_owned(), vec![100])]);
    let mut amounts = sim.amounts().await?;
    amounts.sort_unstable();
    assert_eq!(amounts, [10, 100]);
    billing.stop().await
}

/// Nobody has come to finish it for more than a day.
#[tokio::test]
async fn a_charge_that_is_being_taken_back_for_long_is_named_and_a_run_finishes_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let begun = |ago| format!("update eco_overage_charges set take_back_time = now() - interval '{ago}'");
    sql(&db, &begun("25 hours")).await?;
    sim.delete(&format!("invoiceitems/{}", id(&item_of(&sim, "eco_a").await?)?)).await?;
    ensure!(billing.differences(true).await?.is_empty());
    sql(&db, &begun("27 hours")).await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "CHARGE_IN_DOUBT")]));
    ensure!(billing.run_all().await?.errors.is_empty());
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}

#[tokio::test]
async fn an_item_that_somebody_deleted_is_made_anew_once_the_ledger_is_told_to_give_it_up() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    sim.delete(&format!("invoiceitems/{}", id(&item_of(&sim, "eco_a").await?)?)).await?;
    sql(&db, FAILED_OVER).await?;
    let missing = pairs(&[("eco_a", "ITEM_MISSING")]);
    assert_eq!(billing.differences(false).await?, missing);
    refused(&billing).await?;
    assert_eq!(billing.differences(true).await?, missing);
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{run:?}");
    agree(&billing, &sim, "eco_a", 10).await?;
    let failed: Vec<String> =
        sqlx::query_scalar("select failure_reason from eco_overage_charges where status = 'failed'")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(failed, ["ITEM_GONE"]);
    billing.stop().await
}

/// Somebody paid for it: that it cannot be read any more is no reason to charge it again.
#[tokio::test]
async fn an_item_of_a_final_invoice_that_is_gone_is_not_charged_again() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    sim.delete(&format!("invoiceitems/{}", id(&item_of(&sim, "eco_a").await?)?)).await?;
    sql(&db, "update eco_overage_charges set invoiced_time = now()").await?;
    for _ in 0..2 {
        assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_MISSING")]));
    }
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await
}

#[tokio::test]
async fn an_amount_that_somebody_altered_is_taken_over_and_the_rest_is_charged_or_credited() -> Result<()> {
    for (cents, is_invoiced) in [(3, false), (17, false), (3, true), (0, false)] {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let billing = charged(&db, &sim, &["eco_a"]).await?;
        let item = item_of(&sim, "eco_a").await?;
        edit(&sim, &item, &format!("amount={cents}")).await?;
        if is_invoiced {
            sim.invoice(item["customer"].as_str().context("a customer")?).await?;
        }
        sql(&db, FAILED_OVER).await?;
        let differs = pairs(&[("eco_a", "ITEM_AMOUNT_DIFFERS")]);
        assert_eq!(billing.differences(false).await?, differs);
        refused(&billing).await?;
        assert_eq!(billing.differences(true).await?, differs);
        let run = billing.run_all().await?;
        assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{cents} {run:?}");
        agree(&billing, &sim, "eco_a", 10).await?;
        let units: i64 = sqlx::query_scalar(
            "select sum(units_to - units_from)::bigint from eco_overage_charges where status = 'succeeded'",
        )
        .fetch_one(&db.pool)
        .await?;
        assert_eq!(units, 100, "{cents}");
        billing.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_item_that_somebody_made_anew_by_hand_is_taken_over() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    copy(&sim, &item, &[]).await?;
    sim.delete(&format!("invoiceitems/{}", id(&item)?)).await?;
    let differs = pairs(&[("eco_a", "ITEM_ID_DIFFERS")]);
    // It has another text, too, for a copy has none.
    let found = billing.differences(true).await?;
    assert_eq!(found, differs);
    agree(&billing, &sim, "eco_a", 10).await?;
    billing.stop().await
}

/// On another customer it cannot be accepted: it is taken away, and then it is missing.
#[tokio::test]
async fn an_item_on_another_customer_is_taken_away_and_charged_where_it_belongs() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let item = item_of(&sim, "eco_a").await?;
    let stranger = sim.customer().await?;
    copy(&sim, &item, &[("customer", &stranger)]).await?;
    sim.delete(&format!("invoiceitems/{}", id(&item)?)).await?;
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_WRONG_CUSTOMER")]));
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "ITEM_MISSING")]));
    assert_eq!(billing.run_all().await?.charged_count, 1);
    agree(&billing, &sim, "eco_a", 10).await?;
    assert_eq!(item_of(&sim, "eco_a").await?["customer"], item["customer"]);
    billing.stop().await
}

/// The ledger has the item by its id: what it says of itself endangers nothing.
#[tokio::test]
async fn labels_that_somebody_altered_are_named_and_hold_up_nobody() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    let form = "metadata[billing_period_start]=soon&metadata[eco_id]=eco_x&metadata[charge_id]=";
    edit(&sim, &item_of(&sim, "eco_a").await?, form).await?;
    sql(&db, FAILED_OVER).await?;
    let kinds = ["ITEM_WRONG_ACCOUNT", "ITEM_WRONG_PERIOD", "ITEM_WRONG_CHARGE"];
    assert_eq!(billing.differences(false).await?, pairs(&kinds.map(|kind| ("eco_a", kind))));
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await
}

/// Its answer was lost, and somebody edited the item before the next run.
#[tokio::test]
async fn a_charge_that_stays_in_doubt_keeps_no_later_period_from_being_charged_and_is_named() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a"]).await?;
    edit(&sim, &item_of(&sim, "eco_a").await?, "amount=4").await?;
    // It was of the period before, which is two months long here.
    for statement in [
        "update eco_overage_charges set status = 'pending', stripe_invoice_item_id = null, finished_time = null",
        "update eco_subscriptions set anchor_time = now() - interval '1 hour'",
        "update eco_usage_records set period_end = now() - interval '1 hour'",
    ] {
        sql(&db, statement).await?;
    }
    meter(&db, "eco_a", 100_200).await?;
    let run = billing.run_all().await?;
    let reasons: Vec<_> = run.errors.iter().map(|error| error.reason.as_str()).collect();
    assert_eq!(reasons, ["ITEM_DIFFERS"]);
    let from: DateTime<Utc> =
        sqlx::query_scalar("select created_time + interval '26 hours' from eco_overage_charges where sequence = 1 and status = 'pending'")
            .fetch_one(&db.pool)
            .await?;
    let told = format!("must be reconciled: a repair takes it over from {} on.", from.to_rfc3339());
    ensure!(run.errors[0].message.ends_with(&told), "{:?}", run.errors);
    assert_eq!(sim.amounts().await?, [4, 20], "the later period is charged");
    ensure!(!billing.differences(false).await?.iter().any(|(_, kind)| kind == "CHARGE_IN_DOUBT"));
    sql(&db, "update eco_overage_charges set created_time = created_time - interval '27 hours'").await?;
    assert_eq!(billing.differences(false).await?, pairs(&[("eco_a", "CHARGE_IN_DOUBT")]));
    assert_eq!(billing.differences(true).await?, pairs(&[("eco_a", "CHARGE_IN_DOUBT")]));
    let run = billing.run(only("eco_a")).await?;
    assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{run:?}");
    agree(&billing, &sim, "eco_a", 30).await?;
    billing.stop().await
}

/// With the key of another account of Stripe's everything looks gone, and nothing is given up for that.
#[tokio::test]
async fn nothing_is_charged_again_for_that_another_account_of_stripes_was_asked() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = charged(&db, &sim, &["eco_a", "eco_b"]).await?;
    billing.stop().await?;
    let other = Sim::start().await?;
    let billing = Billing::start(&db, &other.base).await?;
    let mut found = billing.differences(true).await?;
    found.sort();
    assert_eq!(found, pairs(&[("eco_a", "ITEM_MISSING"), ("eco_b", "ITEM_MISSING")]));
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await?;
    let billing = Billing::start(&db, &sim.base).await?;
    agree(&billing, &sim, "eco_a", 10).await?;
    agree(&billing, &sim, "eco_b", 10).await?;
    billing.stop().await
}
