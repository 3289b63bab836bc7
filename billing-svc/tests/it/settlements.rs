//! Draft settlement, and what is owed after a subscription at Stripe has ended.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_billing::{
    app::{
        clear_ended::{self, Standing},
        collect,
        process_overage::{ChargeContext, Engine, charge_account},
        settle_draft::{self, Draft},
    },
    domain::{charge::InvoiceItem, period::PeriodKey},
    payments::{Payments, pace::Pace, stripe::Stripe},
};
use nexus_core::plan::Plan;
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    memory::{Fault, Memory},
    support::{Billing, Sim, anchor, config, record, record_at},
};

pub(crate) fn charging(db: &TestDb, payments: Arc<dyn Payments>) -> Result<ChargeContext> {
    let pool = db::pool(&db.args(), Role::Billing)?;
    let rate = NonZeroU32::new(100_000).context("not zero")?;
    Ok(Engine::new(pool, payments, Pace::new(rate), 2, CancellationToken::new()).outside_runs())
}

pub(crate) fn stripe(db: &TestDb, sim: &Sim) -> Result<ChargeContext> {
    charging(db, Arc::new(Stripe::new(&config(db, &sim.base).stripe)?))
}

/// A pro account with a subscription at Stripe, whose period before the current one ended an hour ago.
pub(crate) async fn subscribed(db: &TestDb, sim: &Sim) -> Result<(String, String, DateTime<Utc>)> {
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    // Four years ago every month had the days that it has now. An anchor in a shorter month, as is the one before on a
    // 31st, would be cut to its last day, and the period would have ended more than a day ago: past its grace.
    let first = Utc::now() - TimeDelta::hours(1) - chrono::Months::new(48);
    seed::account(&db.pool, "eco_a", Plan::Pro, first).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    let current = "select nexus_period_start(anchor_time, now()) from eco_subscriptions";
    Ok((customer, subscription, sqlx::query_scalar(current).fetch_one(&db.pool).await?))
}

pub(crate) async fn period_before(db: &TestDb) -> Result<DateTime<Utc>> {
    let start =
        "select nexus_period_start(anchor_time, nexus_period_start(anchor_time, now()) - interval '1 second')
        from eco_subscriptions";
    Ok(sqlx::query_scalar(start).fetch_one(&db.pool).await?)
}

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

/// Clears what has ended of `eco_a`.
pub(crate) async fn clear(context: &ChargeContext) -> Result<()> {
    let (standing, result) = clear_ended::run(context, "eco_a").await?;
    ensure!(standing == Standing::Clear && result.error.is_none(), "{standing:?} {result:?}");
    Ok(())
}

/// Ends the subscription of `eco_a` in our tables, as its event does: its period is cut, and the account goes on for free.
pub(crate) async fn end_subscription(db: &TestDb, overage_units: i64) -> Result<()> {
    let mut transaction = db::begin(&db.pool).await?;
    for statement in [
        "insert into eco_usage_segments
             (eco_id, period_start, segment, plan, plan_version, closed_time, recorded_units, overage_units)
         select c.eco_id, c.period_start, 0, 'pro', 1, now(), sum(c.recorded_units), $1
         from eco_usage_counters c group by 1, 2",
        "update eco_usage_records set period_end = now() where $1 >= 0",
        "update eco_subscriptions set ended_time = now(), status = 'canceled' where $1 >= 0",
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time, plan_epoch)
         select 'eco_a', 'free', 1, 'active', now() - interval '9 days', 1 where $1 >= 0",
        "insert into eco_ended_subscriptions (subscription_id, eco_id, ended_time)
         select subscription_id, eco_id, ended_time from eco_subscriptions where ended_time is not null and $1 >= 0",
    ] {
        sqlx::query(statement).bind(overage_units).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// Items of invoices that were made by request: amounts by invoice, with the invoice's status.
pub(crate) async fn invoices(sim: &Sim) -> Result<Vec<(String, Vec<i64>)>> {
    let made = sim.made_invoices().await?;
    made.iter()
        .map(|invoice| {
            let status = invoice["status"].as_str().context("a status")?.to_owned();
            let lines = invoice["lines"]["data"].as_array().context("lines")?;
            let amounts: Result<Vec<i64>> =
                lines.iter().map(|line| line["amount"].as_i64().context("an amount")).collect();
            Ok((status, amounts?))
        })
        .collect()
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
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    billing.stop().await?;
    end_subscription(&db, 1_000).await?;
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
            let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
            memory.add_customer("cus_1");
            seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
            seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
            record(&db, "eco_a", 105_000).await?;
            let context = charging(&db, memory.clone())?;
            nexus_billing::app::refresh::drain(&context.pool).await?;
            end_subscription(&db, 5_000).await?;
            for _ in 0..nth {
                memory.fail_next(Fault::None);
            }
            memory.fail_next(kind);
            clear(&context).await?;
            let items = memory.items();
            let amounts: Vec<i64> =
                items.iter().map(|(_, InvoiceItem { amount_minor, .. })| *amount_minor).collect();
            assert_eq!(amounts, [500], "{kind:?} {nth}");
            let ids: Vec<String> = items.into_iter().map(|(id, _)| id).collect();
            assert_eq!(memory.finalised(), [ids], "{kind:?} {nth}");
        }
    }
    Ok(())
}

/// The same, killed while any of its requests is under way, and begun again.
#[tokio::test]
async fn a_settlement_that_is_killed_goes_on_where_it_was() -> Result<()> {
    for nth in 0..4 {
        let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
        memory.add_customer("cus_1");
        seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
        seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
        record(&db, "eco_a", 105_000).await?;
        let context = charging(&db, memory.clone())?;
        nexus_billing::app::refresh::drain(&context.pool).await?;
        end_subscription(&db, 5_000).await?;
        for _ in 0..nth {
            memory.fail_next(Fault::None);
        }
        memory.fail_next(Fault::NoAnswer);
        tokio::select! {
            cleared = clear(&context) => {
                anyhow::bail!("{nth}: it ended: {cleared:?}");
            }
            () = memory.until_unanswered(1) => {}
        }
        clear(&context).await?;
        let ids: Vec<String> = memory.items().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), 1, "{nth}");
        assert_eq!(memory.finalised(), [ids], "{nth}");
    }
    Ok(())
}

#[tokio::test]
async fn two_that_meet_in_one_charge_both_end_well() -> Result<()> {
    let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
    memory.add_customer("cus_1");
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
    record(&db, "eco_a", 105_000).await?;
    let (one, other) = (charging(&db, memory.clone())?, charging(&db, memory.clone())?);
    nexus_billing::app::refresh::drain(&one.pool).await?;
    end_subscription(&db, 5_000).await?;
    memory.fail_next(Fault::LateAnswer);
    let first = clear(&one);
    let second = async {
        memory.until_unanswered(1).await;
        let cleared = clear(&other).await;
        memory.release();
        cleared
    };
    let (first, second) = tokio::join!(first, second);
    first.and(second)?;
    let ids: Vec<String> = memory.items().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(memory.finalised(), [ids]);
    Ok(())
}

/// An invoice takes 250 items.
#[tokio::test]
async fn as_many_invoices_are_made_as_the_items_need() -> Result<()> {
    let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
    memory.add_customer("cus_1");
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
    let context = charging(&db, memory.clone())?;
    record(&db, "eco_a", 100_000).await?;
    for _ in 0..251 {
        record(&db, "eco_a", 10).await?;
        nexus_billing::app::refresh::drain(&context.pool).await?;
        let periods = periods(&db).await?;
        let charged = charge_account(&context, &periods).await;
        ensure!(charged.charged && charged.error.is_none(), "{charged:?}");
    }
    end_subscription(&db, 2_510).await?;
    clear(&context).await?;
    let items = |invoice: Vec<String>| invoice.len();
    assert_eq!(memory.finalised().into_iter().map(items).collect::<Vec<_>>(), [250, 1]);
    Ok(())
}

pub(crate) async fn periods(db: &TestDb) -> Result<Vec<PeriodKey>> {
    let rows: Vec<(String, DateTime<Utc>)> =
        sqlx::query_as("select eco_id, period_start from eco_usage_records").fetch_all(&db.pool).await?;
    Ok(rows.into_iter().map(|(eco_id, start)| PeriodKey { eco_id, start }).collect())
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
