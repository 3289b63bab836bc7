//! Draft settlement, and what is owed after a subscription at Stripe has ended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nexus_billing::{
    app::{
        clear_ended::{self, Standing},
        collect,
        settle_draft::{self, Draft},
    },
    domain::charge::InvoiceItem,
};
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};

use crate::{
    memory::Fault,
    settlement_world::{
        Subscribed, charging, clear, end_subscription, invoices, owing_a_dollar, period_before, stripe,
        subscribed,
    },
    support::{Billing, Sim, anchor, record, record_at},
};

#[tokio::test]
async fn a_draft_gets_what_its_period_owes_and_what_comes_later_is_on_the_next_invoice() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let (customer, subscription, period_end) = subscribed(&db, &sim).await?;
    let before = period_before(&db).await?;
    record_at(&db, "eco_a", before, 105_015).await?;
    // Of the period after it: not on this draft.
    record(&db, "eco_a", 100_100).await?;
    let form =
        format!("customer={customer}&subscription={subscription}&pending_invoice_items_behavior=exclude");
    let invoice_id = sim.create("invoices", &form).await?;
    let draft = Draft { eco_id: "eco_a".to_owned(), invoice_id: invoice_id.clone(), period_end };
    let context = stripe(&db, &sim).context("a context")?;

    let settled = settle_draft::run(&context, &draft).await?;
    ensure!(settled.charged && settled.error.is_none(), "{settled:?}");
    // Rounded down: 5,015 calls are 501.5 cents.
    let items = sim.items().await?;
    assert_eq!(sim.amounts().await?, [501]);
    assert_eq!(items[0]["invoice"], json!(invoice_id));
    assert_eq!(items[0]["metadata"]["late"], Value::Null);
    // Again: nothing has come since.
    ensure!(!settle_draft::run(&context, &draft).await?.charged);
    assert_eq!(sim.amounts().await?, [501]);

    // Finalised meanwhile: what comes now is pending for the next one, once, and says so.
    sim.create(&format!("invoices/{invoice_id}/finalize"), "").await?;
    record_at(&db, "eco_a", before, 1_000).await?;
    let settled = settle_draft::run(&context, &draft).await?;
    ensure!(settled.charged && settled.error.is_none(), "{settled:?}");
    let items = sim.items().await?;
    assert_eq!(sim.amounts().await?, [501, 100]);
    assert_eq!((&items[1]["invoice"], &items[1]["metadata"]["late"]), (&Value::Null, &json!("true")));
    let description = items[1]["description"].as_str().context("a description")?;
    ensure!(description.contains("(late, of the period until"), "{description}");
    let attempts: Vec<(i32, String)> =
        sqlx::query_as("select attempt, status from eco_overage_charges where sequence = 2 order by attempt")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(attempts, [(1, "superseded".to_owned()), (2, "succeeded".to_owned())]);
    Ok(())
}

#[tokio::test]
async fn after_the_end_of_a_subscription_all_is_on_one_invoice_rounded_for_good() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    // Somebody else's: it stays where it is.
    let foreign = sim.create("invoiceitems", &format!("customer={customer}&amount=77&currency=usd")).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    record(&db, "eco_a", 15).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [77, 100, 1]);

    end_subscription(&db, 1_015).await?;
    sim.cancel(&subscription).await?;
    let context = stripe(&db, &sim)?;
    clear(&context).await?;
    // 101.5 cents, half a cent up: one more.
    assert_eq!(sim.amounts().await?, [77, 100, 1, 1]);
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![100, 1, 1])]);
    assert_eq!(sim.get(&format!("invoiceitems/{foreign}")).await?["invoice"], Value::Null);
    assert_eq!(sim.made_invoices().await?[0]["auto_advance"], json!(true));
    let settled_periods: i64 =
        sqlx::query_scalar("select count(*) from eco_usage_records where settled_time is not null")
            .fetch_one(&db.pool)
            .await?;
    assert_eq!(settled_periods, 1);

    // Again, and by the daily run: nothing more.
    clear(&context).await?;
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?.len(), 1);
    assert_eq!(sim.amounts().await?, [77, 100, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn a_run_collects_what_a_settlement_left_behind() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 102_000).await?;
    // Killed before it settled anything: the run charges, and makes the invoice.
    end_subscription(&db, 2_000).await?;
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![200])]);
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?.len(), 1);
    Ok(())
}

/// Stripe may ask for a pause that is longer than a server is given to stop.
#[tokio::test]
async fn a_pause_that_stripe_asks_for_holds_up_no_shutdown() -> Result<()> {
    let (db, sim) = owing_a_dollar().await?;
    let context = stripe(&db, &sim)?;
    context.pace.pause_all(Duration::from_secs(3_000));
    context.shutdown.cancel();
    let within = Duration::from_secs(60);
    let (standing, result) = tokio::time::timeout(within, clear_ended::run(&context, "eco_a")).await??;
    ensure!(standing == Standing::Failed && result.error.is_some(), "{standing:?} {result:?}");
    let collected = tokio::time::timeout(within, collect::run(&context, "eco_a")).await??;
    ensure!(collected.is_some(), "nothing was asked, so it is not known");
    Ok(())
}

/// A settlement with an item of 5 dollars, of which any request goes wrong in any way.
#[tokio::test]
async fn whatever_request_of_a_settlement_goes_wrong_there_is_one_invoice() -> Result<()> {
    for kind in [Fault::Lost, Fault::AnswerLost, Fault::StoredError, Fault::StoredErrorAfterEffect] {
        for nth in 0..4 {
            let ended = Subscribed::ended().await?;
            for _ in 0..nth {
                ended.memory.fail_next(Fault::None);
            }
            ended.memory.fail_next(kind);
            clear(&ended.context).await?;
            let items = ended.memory.items();
            let amounts: Vec<i64> =
                items.iter().map(|(_, InvoiceItem { amount_minor, .. })| *amount_minor).collect();
            assert_eq!(amounts, [500], "{kind:?} {nth}");
            ended.is_collected().with_context(|| format!("{kind:?} {nth}"))?;
        }
    }
    Ok(())
}

/// The same, killed while any of its requests is under way, and begun again.
#[tokio::test]
async fn a_settlement_that_is_killed_goes_on_where_it_was() -> Result<()> {
    for nth in 0..4 {
        let ended = Subscribed::ended().await?;
        ended.killed(nth, clear(&ended.context)).await?;
        clear(&ended.context).await?;
        ended.is_collected().with_context(|| format!("killed after {nth}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn two_that_meet_in_one_charge_both_end_well() -> Result<()> {
    let ended = Subscribed::ended().await?;
    let other = charging(&ended.db, ended.memory.clone())?;
    ended.memory.fail_next(Fault::LateAnswer);
    let first = clear(&ended.context);
    let second = async {
        ended.memory.until_unanswered(1).await;
        let cleared = clear(&other).await;
        ended.memory.release();
        cleared
    };
    let (first, second) = tokio::join!(first, second);
    first.and(second)?;
    ended.is_collected()
}

/// What was charged may be in doubt when its subscription ends, and lie on a draft that nobody finalises.
#[tokio::test]
async fn a_doubt_that_is_resolved_on_a_dead_draft_is_taken_off_it_and_collected() -> Result<()> {
    let subscribed = Subscribed::new().await?;
    subscribed.record(105_000).await?;
    subscribed.killed(0, subscribed.charge()).await?;
    subscribed.memory.draft("cus_1", "sub_1");
    subscribed.memory.end_subscription("sub_1");
    end_subscription(&subscribed.db, 5_000).await?;
    let (standing, result) = clear_ended::run(&subscribed.context, "eco_a").await?;
    ensure!(standing == Standing::OnDrafts && result.charged, "{standing:?} {result:?}");
    // It is looked at once more.
    clear(&subscribed.context).await?;
    subscribed.is_collected()
}

/// An invoice takes 250 items.
#[tokio::test]
async fn as_many_invoices_are_made_as_the_items_need() -> Result<()> {
    let subscribed = Subscribed::new().await?;
    subscribed.record(100_000).await?;
    for _ in 0..251 {
        subscribed.record(10).await?;
        subscribed.charge().await?;
    }
    end_subscription(&subscribed.db, 2_510).await?;
    clear(&subscribed.context).await?;
    let items = |invoice: Vec<String>| invoice.len();
    assert_eq!(subscribed.memory.finalised().into_iter().map(items).collect::<Vec<_>>(), [250, 1]);
    Ok(())
}

#[tokio::test]
async fn what_was_charged_on_a_subscription_before_the_present_one_is_collected() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let (old, new) = (sim.subscription(&customer).await?, sim.subscription(&customer).await?);
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&old)).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 102_000).await?;
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?, []);

    end_subscription(&db, 2_000).await?;
    sqlx::query(
        "update eco_subscriptions set stripe_subscription_id = $1, plan = 'pro' where ended_time is null",
    )
    .bind(&new)
    .execute(&db.pool)
    .await?;
    billing.run_all().await?;
    let collected = [("open".to_owned(), vec![200])];
    assert_eq!(invoices(&sim).await?, collected);
    // The present one's next invoice takes its own.
    record(&db, "eco_a", 100_100).await?;
    billing.run_all().await?;
    let items = sim.items().await?;
    assert_eq!((&items[1]["amount"], &items[1]["invoice"]), (&json!(10), &Value::Null));
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?, collected);
    Ok(())
}
