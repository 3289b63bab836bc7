//! Charges that no invoice takes by itself: of a subscription whose end was not heard of yet, on a draft that nobody
//! finalises, of an account that never had a subscription.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::{
    app::settle_draft::{self, Draft},
    payments::Payments,
    store::take_backs,
};
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::ProcessOverageRequest;
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};

use crate::{
    memory::{Fault, Memory},
    settlement_world::{
        Subscribed, charging, clear, end_subscription, invoices, period_before, periods, stripe, subscribed,
    },
    support::{Billing, Sim, anchor, begin, record, record_at},
};

async fn attempts(db: &TestDb) -> Result<Vec<(i32, i32, String)>> {
    let statement =
        "select sequence, attempt, status from eco_overage_charges order by created_time, sequence, attempt";
    Ok(sqlx::query_as(statement).fetch_all(&db.pool).await?)
}

async fn parked(db: &TestDb) -> Result<i64> {
    let statement = "select count(*) from eco_usage_records where parked_reason is not null";
    Ok(sqlx::query_scalar(statement).fetch_one(&db.pool).await?)
}

#[tokio::test]
async fn a_run_that_is_quicker_than_the_end_of_a_subscription_charges_the_customer_alone() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let (_, subscription, _) = subscribed(&db, &sim).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 100_500).await?;
    sim.cancel(&subscription).await?;
    let run = billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{run:?}");
    let items = sim.items().await?;
    assert_eq!((sim.amounts().await?.as_slice(), &items[0]["parent"]), ([50].as_slice(), &Value::Null));
    assert_eq!(attempts(&db).await?, [(1, 1, "superseded".into()), (1, 2, "succeeded".into())]);
    assert_eq!(parked(&db).await?, 0);
    billing.stop().await
}

#[tokio::test]
async fn a_draft_whose_subscription_has_ended_meanwhile_leaves_its_charge_to_the_customer() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let (customer, subscription, period_end) = subscribed(&db, &sim).await?;
    record_at(&db, "eco_a", period_before(&db).await?, 105_000).await?;
    let form =
        format!("customer={customer}&subscription={subscription}&pending_invoice_items_behavior=exclude");
    let invoice_id = sim.create("invoices", &form).await?;
    sim.cancel(&subscription).await?;
    let draft = Draft { eco_id: "eco_a".to_owned(), invoice_id, period_end };
    let settled = settle_draft::run(&stripe(&db, &sim)?, &draft).await?;
    ensure!(settled.charged && settled.error.is_none(), "{settled:?}");
    let items = sim.items().await?;
    assert_eq!((sim.amounts().await?.as_slice(), &items[0]["parent"]), ([500].as_slice(), &Value::Null));
    assert_eq!(parked(&db).await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_a_settlement_was_refused_is_told_by_the_next_run_once() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let (_, _, period_end) = subscribed(&db, &sim).await?;
    // A customer that is not there: every charge is refused.
    sqlx::query("update eco_identities set stripe_customer_id = 'cus_gone'").execute(&db.pool).await?;
    record_at(&db, "eco_a", period_before(&db).await?, 105_000).await?;
    let draft = Draft { eco_id: "eco_a".to_owned(), invoice_id: "in_gone".to_owned(), period_end };
    let settled = settle_draft::run(&stripe(&db, &sim)?, &draft).await?;
    let told = settled.error.context("a refusal")?;
    assert_eq!((told.reason.as_str(), parked(&db).await?), ("RESOURCE_MISSING", 1));

    let billing = Billing::start(&db, &sim.base).await?;
    let only = ProcessOverageRequest { account_ids: vec!["eco_b".to_owned()], ..Default::default() };
    assert_eq!(billing.run(only).await?.errors.len(), 0, "not of these accounts");
    let run = billing.run_all().await?;
    let errors: Vec<_> =
        run.errors.iter().map(|e| (e.eco_id.as_str(), e.reason.as_str(), &e.message)).collect();
    assert_eq!(errors, [("eco_a", "RESOURCE_MISSING", &told.message)]);
    assert_eq!(billing.run_all().await?.errors.len(), 0);
    billing.stop().await
}

/// The account's charges lie on a draft of a cycle when its subscription is ended at once.
async fn on_a_dead_draft() -> Result<(Subscribed, String)> {
    let subscribed = Subscribed::new().await?;
    subscribed.record(105_000).await?;
    subscribed.charge().await?;
    let draft = subscribed.memory.draft("cus_1", "sub_1");
    subscribed.memory.end_subscription("sub_1");
    Ok((subscribed, draft))
}

#[tokio::test]
async fn charges_on_a_draft_that_nobody_finalises_are_collected_by_an_invoice_of_their_own() -> Result<()> {
    for killed in [false, true] {
        let (Subscribed { db, memory, context }, _) = on_a_dead_draft().await?;
        let [(first, _)]: [_; 1] = memory.items().try_into().ok().context("one item")?;
        end_subscription(&db, 5_000).await?;
        if killed {
            let mut connection = nexus_kit::db::acquire(&context.pool).await?;
            take_backs::begin(&mut connection, "eco_a", std::slice::from_ref(&first)).await?;
            ensure!(memory.delete_item(&first).await.is_ok());
        }
        for _ in 0..2 {
            clear(&context).await?;
            let [(item, _)]: [_; 1] = memory.items().try_into().ok().context("one item")?;
            assert_ne!(item, first);
            assert_eq!(memory.finalised(), [vec![item]], "{killed}");
            assert_eq!(
                attempts(&db).await?,
                [(1, 1, "failed".into()), (2, 1, "succeeded".into())],
                "{killed}"
            );
        }
    }
    Ok(())
}

/// A later one was on the customer alone, and stays.
#[tokio::test]
async fn a_charge_that_is_made_anew_tells_of_the_calls_that_it_is_for() -> Result<()> {
    let (ended, _) = on_a_dead_draft().await?;
    ended.record(100).await?;
    ended.charge().await?;
    end_subscription(&ended.db, 5_100).await?;
    clear(&ended.context).await?;
    let items = ended.memory.items();
    let told: Vec<_> =
        items.iter().map(|(_, item)| (item.amount_minor, item.metadata["overage_calls"].as_str())).collect();
    assert_eq!(told, [(10, "100"), (500, "5000")]);
    let text = &items[1].1.description;
    assert!(text.starts_with("API overage: 5,000 calls"), "{text}");
    Ok(())
}

/// Somebody finalised the draft after all, while it was to be taken off it.
#[tokio::test]
async fn a_charge_on_an_invoice_that_was_finalised_after_all_stays() -> Result<()> {
    let (Subscribed { db, memory, context }, draft) = on_a_dead_draft().await?;
    let [(item, _)]: [_; 1] = memory.items().try_into().ok().context("one item")?;
    let mut connection = nexus_kit::db::acquire(&context.pool).await?;
    take_backs::begin(&mut connection, "eco_a", std::slice::from_ref(&item)).await?;
    memory.finalize_invoice(&draft, "by hand").await;
    end_subscription(&db, 5_000).await?;
    clear(&context).await?;
    assert_eq!(attempts(&db).await?, [(1, 1, "succeeded".into())]);
    assert_eq!(memory.finalised(), [vec![item]]);
    ensure!(take_backs::begun(&mut connection, "eco_a", "cus_1").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_is_ended_at_once_leaves_nothing_on_its_drafts() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let (customer, subscription, _) = subscribed(&db, &sim).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    let form =
        format!("customer={customer}&subscription={subscription}&pending_invoice_items_behavior=include");
    sim.create("invoices", &form).await?;
    sim.cancel(&subscription).await?;
    end_subscription(&db, 1_000).await?;
    clear(&stripe(&db, &sim)?).await?;
    assert_eq!(sim.amounts().await?, [100]);
    assert_eq!(invoices(&sim).await?, [("draft".to_owned(), vec![]), ("open".to_owned(), vec![100])]);
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await
}

/// An admin has given it a plan, after the end of a subscription.
#[tokio::test]
async fn an_account_without_its_subscription_gets_an_invoice_a_period_and_not_one_a_day() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.pro(&db, "eco_a").await?;
    let ended = "insert into eco_subscriptions
             (eco_id, plan, plan_version, status, anchor_time, started_time, ended_time, stripe_subscription_id)
         select eco_id, 'pro', 1, 'canceled', anchor_time - interval '40 days', anchor_time - interval '40 days',
                anchor_time - interval '1 day', 'sub_ended' from eco_subscriptions";
    sqlx::query(ended).execute(&db.pool).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    for units in [100_500, 500] {
        record(&db, "eco_a", units).await?;
        assert_eq!(billing.run_all().await?.charged_count, 1);
    }
    assert_eq!((sim.amounts().await?, invoices(&sim).await?.len()), (vec![50, 50], 0));
    let over = "update eco_usage_records set period_end = now() - interval '25 hours'";
    sqlx::query(over).execute(&db.pool).await?;
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![50, 50])]);
    billing.stop().await
}

#[tokio::test]
async fn an_account_that_never_had_a_subscription_gets_an_invoice_when_its_period_is_settled() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    // The period before ended two days ago: it is past its grace.
    let first = Utc::now() - TimeDelta::days(2) - chrono::Months::new(1);
    seed::account(&db.pool, "eco_a", Plan::Pro, first).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, None).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record_at(&db, "eco_a", period_before(&db).await?, 102_000).await?;
    record(&db, "eco_a", 100_500).await?;
    billing.run_all().await?;
    let mut amounts = sim.amounts().await?;
    amounts.sort_unstable();
    assert_eq!(amounts, [50, 200]);
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![200])], "what the current one owes waits");
    billing.run_all().await?;
    assert_eq!(invoices(&sim).await?.len(), 1);

    // A month later, that of the next one: it was charged long before the first invoice was made.
    sqlx::query("update eco_overage_charges set finished_time = finished_time - interval '1 hour'")
        .execute(&db.pool)
        .await?;
    let ends =
        "update eco_usage_records set period_end = now() - interval '25 hours' where settled_time is null";
    sqlx::query(ends).execute(&db.pool).await?;
    billing.run_all().await?;
    billing.run_all().await?;
    let collected = [("open".to_owned(), vec![200]), ("open".to_owned(), vec![50])];
    assert_eq!(invoices(&sim).await?, collected);
    billing.stop().await
}

/// Its subscription was unpaid when the cycle ended, and is paid again: nobody finalises the draft all the same.
#[tokio::test]
async fn a_draft_that_does_not_advance_gives_its_charges_to_the_next_invoice() -> Result<()> {
    for (days, stays) in [(1, true), (3, false)] {
        let memory = Arc::new(Memory::new());
        let db = TestDb::new().await?;
        memory.add_customer("cus_1");
        seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
        seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
        record(&db, "eco_a", 105_000).await?;
        let context = charging(&db, memory.clone())?;
        nexus_billing::app::refresh::drain(&context.pool).await?;
        let owing = periods(&db).await?;
        ensure!(nexus_billing::app::process_overage::charge_account(&context, &owing).await.charged);
        memory.draft("cus_1", "sub_1");
        memory.age_invoices(TimeDelta::days(days));
        clear(&context).await?;
        let attempts = attempts(&db).await?;
        if stays {
            assert_eq!(attempts, [(1, 1, "succeeded".into())], "somebody may finalise it by hand");
            continue;
        }
        assert_eq!(attempts, [(1, 1, "failed".into()), (2, 1, "succeeded".into())]);
        let places = memory.places("cus_1", &context.pace).await.ok().context("places")?;
        assert_eq!(places.into_values().collect::<Vec<_>>(), [nexus_billing::payments::Place::Pending]);
        assert_eq!(memory.items()[0].1.subscription.as_deref(), Some("sub_1"));
    }
    Ok(())
}

/// Its settlement is lost with the last moments of a database, and no subscription of it ever ended.
#[tokio::test]
async fn an_account_that_never_had_a_subscription_gets_its_charges_off_a_forgotten_draft_of_ours()
-> Result<()> {
    let memory = Arc::new(Memory::new());
    let db = TestDb::new().await?;
    memory.add_customer("cus_1");
    let first = Utc::now() - TimeDelta::days(2) - chrono::Months::new(1);
    seed::account(&db.pool, "eco_a", Plan::Pro, first).await?;
    seed::stripe_ids(&db.pool, "eco_a", "cus_1", None).await?;
    record_at(&db, "eco_a", period_before(&db).await?, 102_000).await?;
    let context = charging(&db, memory.clone())?;
    nexus_billing::app::refresh::drain(&context.pool).await?;
    let owing = periods(&db).await?;
    ensure!(nexus_billing::app::process_overage::charge_account(&context, &owing).await.charged);
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

/// Its next cycle is in a year: what a month owes is not left until then.
#[tokio::test]
async fn what_a_subscription_billed_by_the_year_leaves_pending_is_on_an_invoice_a_month() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let price = "currency=usd&unit_amount=49000&recurring[interval]=year&product_data[name]=Pro";
    let price = sim.create("prices", price).await?;
    let subscription =
        sim.create("subscriptions", &format!("customer={customer}&items[0][price]={price}")).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(invoices(&sim).await?, [], "a cycle may yet take it");
    // It was charged in the month before, which ended three days ago, or one day ago.
    for (days, made) in [(1, 0), (3, 1)] {
        let statement = "with moved as (update eco_subscriptions set anchor_time = now() - make_interval(days => $1))
                         update eco_overage_charges set finished_time = now() - make_interval(days => $1 + 5)";
        sqlx::query(statement).bind(days).execute(&db.pool).await?;
        for _ in 0..2 {
            assert_eq!(billing.run_all().await?.errors.len(), 0);
            assert_eq!(invoices(&sim).await?.len(), made, "{days}");
        }
    }
    assert_eq!(invoices(&sim).await?, [("open".to_owned(), vec![100])]);
    assert_eq!(sim.amounts().await?, [100]);
    billing.stop().await
}

/// An invoice takes three requests, at Stripe's pace: with one account after the other a run would take hours.
#[tokio::test]
async fn a_run_collects_for_several_accounts_side_by_side() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    for eco_id in ["eco_a", "eco_b", "eco_c"] {
        sim.pro(&db, eco_id).await?;
        record(&db, eco_id, 101_000).await?;
    }
    let billing = Billing::start(&db, &sim.base).await?;
    assert_eq!(billing.run_all().await?.charged_count, 3);
    sqlx::query("update eco_usage_records set settled_time = now()").execute(&db.pool).await?;
    let hold = json!({ "method": "POST", "path": "/v1/invoices", "times": 3, "hold": true });
    sim.admin("/faults", hold).await?;
    let call = begin(&billing);
    let held = tokio::time::timeout(std::time::Duration::from_secs(15), sim.read("/held?at_least=3")).await;
    held.context("the second account waits until the first has its invoice")??;
    sim.admin("/release", json!({})).await?;
    assert_eq!(call.await??.errors.len(), 0);
    assert_eq!(invoices(&sim).await?, vec![("open".to_owned(), vec![100]); 3]);
    billing.stop().await
}
