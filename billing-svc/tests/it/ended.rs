//! Whatever ends a subscription at Stripe, and in whichever order that is heard: nothing of ours stays pending, or on a
//! draft that nobody finalises.

use anyhow::{Context, Result, ensure};
use chrono::{Months, TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::CloseAccountRequest;
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};

use crate::{
    settlement_world::{end_subscription, period_before},
    support::{Billing, NONE_WAITS, Sim, anchor, event, manager, record, record_at, until},
};

impl Sim {
    /// Amounts of the items that are on no finalised invoice.
    pub(crate) async fn open_amounts(&self) -> Result<Vec<i64>> {
        let state = self.read("/state").await?;
        let invoices = state["invoices"].as_array().context("invoices")?;
        let is_final = |id: &Value| invoices.iter().any(|it| it["id"] == *id && it["status"] != "draft");
        let open = self.items().await?.into_iter().filter(|item| !is_final(&item["invoice"]));
        open.map(|item| item["amount"].as_i64().context("an amount")).collect()
    }

    /// A draft of a subscription with all that is pending of it, as a cycle makes it that nobody collects.
    async fn draft(&self, customer: &str, subscription: &str) -> Result<String> {
        let form =
            format!("customer={customer}&subscription={subscription}&pending_invoice_items_behavior=include");
        self.create("invoices", &form).await
    }
}

fn told(id: &str, kind: &str, subscription: &str) -> Value {
    event(id, &format!("customer.subscription.{kind}"), json!({ "id": subscription }))
}

/// An account on pro by a subscription that was heard of; returns its customer and that.
async fn subscribed(db: &TestDb, sim: &Sim, billing: &Billing) -> Result<(String, String)> {
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let customer = sim.customer().await?;
    let pro = sim.price("pro").await?;
    let form = format!("customer={customer}&items[0][price]={pro}&metadata[eco_id]=eco_a");
    let subscription = sim.create("subscriptions", &form).await?;
    billing.event(&told("evt_begun", "created", &subscription)).await?;
    until(db, NONE_WAITS).await?;
    Ok((customer, subscription))
}

/// The same, and what it was charged lies on a draft that nobody collects.
async fn on_a_draft(db: &TestDb, sim: &Sim, billing: &Billing) -> Result<(String, String)> {
    let (customer, subscription) = subscribed(db, sim, billing).await?;
    record(db, "eco_a", 101_000).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    sim.draft(&customer, &subscription).await?;
    ensure!(sim.open_amounts().await? == [100]);
    Ok((customer, subscription))
}

#[tokio::test]
async fn a_closed_accounts_charges_are_taken_off_its_drafts_and_collected() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let (_, subscription) = on_a_draft(&db, &sim, &billing).await?;
    record(&db, "eco_a", 500).await?;
    let close = CloseAccountRequest { eco_id: "eco_a".to_owned(), ..Default::default() };
    billing.client.clone().close_account(manager()?.request(close)).await?;
    billing.event(&told("evt_ended", "deleted", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(sim.open_amounts().await?, [0; 0]);
    assert_eq!(sim.amounts().await?.iter().sum::<i64>(), 150);
    // It is done for good: there is nothing that a run would do.
    billing.run_all().await?;
    let invoices = sim.made_invoices().await?;
    let made = invoices.iter().filter(|it| it["status"] != "draft").count();
    assert_eq!((made, sim.amounts().await?.iter().sum::<i64>()), (1, 150));
    billing.stop().await
}

#[tokio::test]
async fn a_subscription_whose_end_is_heard_after_the_next_has_begun_leaves_nothing() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let (customer, first) = on_a_draft(&db, &sim, &billing).await?;
    sim.cancel(&first).await?;
    sim.admin("/clock", json!({ "advance_seconds": 5 })).await?;
    let pro = sim.price("other").await?;
    sqlx::query("insert into eco_stripe_prices values ('other', 'pro')").execute(&db.pool).await?;
    let form = format!("customer={customer}&items[0][price]={pro}");
    let second = sim.create("subscriptions", &form).await?;
    billing.event(&told("evt_next", "created", &second)).await?;
    until(&db, NONE_WAITS).await?;
    billing.event(&told("evt_ended", "deleted", &first)).await?;
    until(&db, NONE_WAITS).await?;
    // It waits for the next invoice of the one that goes on, and says that it is late.
    let items = sim.items().await?;
    assert_eq!((items.len(), &items[0]["amount"]), (1, &json!(100)));
    assert_eq!((&items[0]["invoice"], &items[0]["metadata"]["late"]), (&Value::Null, &json!("true")));
    sim.cancel(&second).await?;
    billing.event(&told("evt_ended_too", "deleted", &second)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!((sim.open_amounts().await?, sim.amounts().await?), (vec![], vec![100]));
    billing.stop().await
}

/// Whatever keeps an end from being settled that passes, and however often.
#[tokio::test]
async fn an_end_is_never_given_up() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let (_, subscription) = on_a_draft(&db, &sim, &billing).await?;
    sim.cancel(&subscription).await?;
    let refused = json!({ "kind": "error", "status": 401 });
    let refuse = |path: &str| json!({ "path": path, "times": 1_000, "outcome": refused });
    // It has failed more often than what needs a person may.
    sim.admin("/faults", refuse(&format!("/v1/subscriptions/{subscription}"))).await?;
    billing.event(&told("evt_ended", "deleted", &subscription)).await?;
    until(&db, "select exists (select from eco_stripe_events where attempts > 0)").await?;
    sim.call(hyper::Method::DELETE, "/_sim/faults", "application/json", String::new()).await?;
    sim.admin("/faults", refuse("/v1/invoice*")).await?;
    sqlx::query("update eco_stripe_events set attempts = 100, due_time = now() where processed_time is null")
        .execute(&db.pool)
        .await?;
    until(&db, "select processed_time is not null or parked_time is not null from eco_stripe_events where stripe_event_id = 'evt_ended'").await?;
    until(&db, "select not exists (select from eco_stripe_events where parked_time is not null)").await?;
    assert_eq!(sim.open_amounts().await?, [100]);
    sim.call(hyper::Method::DELETE, "/_sim/faults", "application/json", String::new()).await?;
    // The daily run does it, too, whenever it is due; where it meets the worker, either may be the last.
    billing.run_all().await?;
    until(&db, "select not exists (select from eco_ended_subscriptions where cleared_time is null)").await?;
    assert_eq!((sim.open_amounts().await?, sim.amounts().await?), (vec![], vec![100]));
    billing.stop().await
}

#[tokio::test]
async fn what_is_pending_of_a_customer_whom_the_account_has_left_is_collected() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let before = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 101_000).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    let customer = sim.customer().await?;
    let pro = sim.price("pro").await?;
    let form = format!("customer={customer}&items[0][price]={pro}&metadata[eco_id]=eco_a");
    let subscription = sim.create("subscriptions", &form).await?;
    billing.event(&told("evt_begun", "created", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    let now: String =
        sqlx::query_scalar("select stripe_customer_id from eco_identities").fetch_one(&db.pool).await?;
    assert_eq!((&now, sim.open_amounts().await?), (&customer, vec![100]));
    ensure!(now != before);
    billing.run_all().await?;
    assert_eq!(sim.open_amounts().await?, [0; 0]);
    let invoices = sim.made_invoices().await?;
    let of: Vec<_> = invoices.iter().map(|it| (&it["customer"], &it["total"])).collect();
    assert_eq!(of, [(&json!(before), &json!(100))]);
    billing.stop().await
}

#[tokio::test]
async fn what_was_charged_for_a_period_that_takes_no_more_charges_is_collected() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let first = Utc::now() - TimeDelta::hours(2) - Months::new(48);
    seed::account(&db.pool, "eco_a", Plan::Pro, first).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, None).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    let before = period_before(&db).await?;
    record_at(&db, "eco_a", before, 101_000).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    record_at(&db, "eco_a", before, 500).await?;
    sim.fault(json!({ "outcome": { "kind": "error", "status": 402, "type": "card_error", "code": "card_declined" } }))
        .await?;
    let run = billing.run_all().await?;
    assert_eq!(run.errors.len(), 1, "{run:?}");
    assert_eq!(sim.open_amounts().await?, [100], "it may still be mended");
    // It is past the time at which it would have been settled.
    sqlx::query("update eco_usage_records set settle_time = now()").execute(&db.pool).await?;
    billing.run_all().await?;
    assert_eq!((sim.open_amounts().await?, sim.amounts().await?), (vec![], vec![100]));
    billing.stop().await
}

/// An item that is stuck is named for as long as it is, however old.
#[tokio::test]
async fn an_old_item_that_no_invoice_takes_stays_named() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let long_ago = Utc::now() - TimeDelta::days(100);
    let clock =
        sim.create("test_helpers/test_clocks", &format!("frozen_time={}", long_ago.timestamp())).await?;
    let customer = sim.create("customers", &format!("test_clock={clock}")).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, None).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    crate::support::meter(&db, "eco_a", 101_000).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    sqlx::query("update eco_overage_charges set created_time = $1, finished_time = $1")
        .bind(long_ago)
        .execute(&db.pool)
        .await?;
    let stuck = [("eco_a".to_owned(), "ITEM_ON_NO_FINALISED_INVOICE".to_owned())];
    for _ in 0..2 {
        assert_eq!(billing.differences(false).await?, stuck);
    }
    sim.invoice(&customer).await?;
    for _ in 0..2 {
        assert_eq!(billing.differences(false).await?, []);
    }
    billing.stop().await
}

/// The cent that a settlement has rounded up stays where it is, if the period goes on after all.
#[tokio::test]
async fn a_period_that_was_rounded_and_goes_on_gives_no_cent_back() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_015).await?;
    ensure!(billing.run_all().await?.charged_count == 1);
    let pro = sim.price("pro").await?;
    let subscription =
        sim.create("subscriptions", &format!("customer={customer}&items[0][price]={pro}")).await?;
    billing.event(&told("evt_begun", "created", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    let over = "update eco_usage_records set settle_time = now() where period_end <= now()";
    sqlx::query(over).execute(&db.pool).await?;
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [1, 1], "a cent and a half");
    sim.cancel(&subscription).await?;
    billing.event(&told("evt_ended", "deleted", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [1, 1]);
    assert_eq!(sim.open_amounts().await?, [0; 0]);
    let shown = billing.overage("eco_a").await?;
    assert_eq!((shown.due_micros, shown.billed_micros, shown.invoiced), (20_000, 20_000, true));
    billing.stop().await
}

/// Ended where nobody heard of it but our tables: an older version, for one.
#[tokio::test]
async fn a_run_clears_what_nobody_has_noted() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let (_, subscription) = on_a_draft(&db, &sim, &billing).await?;
    sqlx::query("delete from eco_usage_segments").execute(&db.pool).await?;
    end_subscription(&db, 1_000).await?;
    sim.cancel(&subscription).await?;
    sqlx::query("update eco_subscriptions set ended_time = ended_time - interval '2 days' where stripe_subscription_id is not null")
        .execute(&db.pool)
        .await?;
    billing.run_all().await?;
    assert_eq!((sim.open_amounts().await?, sim.amounts().await?), (vec![], vec![100]));
    billing.stop().await
}
