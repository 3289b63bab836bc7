//! Stripe's events, applied: plan, state, periods and charges; by several replicas, and by one that is killed.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt, future::try_join_all};
use nexus_billing::{
    app::{
        settle_draft::Draft,
        stripe_events::{self, apply::apply, settle::Applied},
    },
    domain::{
        stripe_event::Outcome,
        stripe_objects::{Invoice, Price, Subscription},
    },
    payments::pace::Pace,
    store::stripe_events::Job,
};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};

use crate::{
    memory_subscriptions::MemorySubscriptions,
    support::{Billing, NONE_WAITS, Sim, anchor, event, record, until},
};

/// What an account has: plan, state, Stripe's subscription and customer.
async fn account(db: &TestDb, eco_id: &str) -> Result<(String, String, Option<String>, Option<String>)> {
    let statement = "select s.plan, s.status, s.stripe_subscription_id, i.stripe_customer_id
        from eco_identities i join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null
        where i.eco_id = $1";
    Ok(sqlx::query_as(statement).bind(eco_id).fetch_one(&db.pool).await?)
}

async fn periods(db: &TestDb) -> Result<Vec<(DateTime<Utc>, DateTime<Utc>, String, i64, i64)>> {
    let statement = "select period_start, period_end, plan, api_calls, overage_units from eco_usage_records
        order by period_start";
    Ok(sqlx::query_as(statement).fetch_all(&db.pool).await?)
}

/// A customer at Stripe with a subscription, both naming nobody; the price has a lookup key.
struct Subscribed {
    customer: String,
    subscription: String,
}

impl Sim {
    async fn subscribe(&self, price: &str, metadata: &str) -> Result<Subscribed> {
        let customer = self.customer().await?;
        let form = format!("customer={customer}&items[0][price]={price}{metadata}");
        let subscription = self.create("subscriptions", &form).await?;
        Ok(Subscribed { customer, subscription })
    }

    /// How often a subscription was read.
    async fn reads(&self, subscription: &str) -> Result<usize> {
        let log = self.read(&format!("/requests?method=GET&path=/v1/subscriptions/{subscription}")).await?;
        Ok(log.as_array().or_else(|| log["requests"].as_array()).context("a log")?.len())
    }
}

fn created(id: &str, subscription: &str) -> Value {
    event(id, "customer.subscription.created", json!({ "id": subscription }))
}

fn updated(id: &str, subscription: &str) -> Value {
    event(id, "customer.subscription.updated", json!({ "id": subscription }))
}

#[tokio::test]
async fn a_subscription_cuts_the_period_and_its_end_resumes_the_old_one() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let anchor = anchor();
    seed::account(&db.pool, "eco_a", Plan::Free, anchor).await?;
    record(&db, "eco_a", 900).await?;
    let pro = sim.price("pro").await?;
    let Subscribed { customer, subscription } = sim.subscribe(&pro, "&metadata[eco_id]=eco_a").await?;
    billing.event(&created("evt_1", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    let expected = ("pro".into(), "active".into(), Some(subscription.clone()), Some(customer.clone()));
    assert_eq!(account(&db, "eco_a").await?, expected);
    record(&db, "eco_a", 100_500).await?;
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.overage_count, overage.included_count), (500, 100_000), "the count began anew");

    sim.cancel(&subscription).await?;
    billing.event(&event("evt_2", "customer.subscription.deleted", json!({ "id": subscription }))).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?, ("free".into(), "active".into(), None, Some(customer)));
    // 50 more of the 900 that were counted before: nothing was won.
    record(&db, "eco_a", 50).await?;
    until(&db, "select exists (select from eco_usage_records where api_calls = 950)").await?;
    let found = periods(&db).await?;
    let [free, paid] = found.as_slice() else { anyhow::bail!("{found:?}") };
    assert_eq!((free.2.as_str(), free.3, free.4), ("free", 950, 0));
    assert_eq!((free.0 - anchor).num_seconds(), 0);
    assert!(free.1 > Utc::now() + TimeDelta::days(20), "it ends when it would have: {free:?}");
    assert_eq!((paid.2.as_str(), paid.3, paid.4), ("pro", 100_500, 500));
    assert!(paid.0 <= paid.1 && paid.1 <= Utc::now(), "{paid:?}");

    // What was used beyond was charged with the end, on an invoice made for it, once.
    assert_eq!(sim.amounts().await?, [50]);
    let invoices = sim.made_invoices().await?;
    assert_eq!(invoices.len(), 1);
    assert_eq!((&invoices[0]["status"], &invoices[0]["total"]), (&json!("open"), &json!(50)));
    assert_eq!(billing.run_all().await?.charged_count, 0);

    // Again, and again nothing is won but what is paid for.
    let form =
        format!("customer={}&items[0][price]={pro}", account(&db, "eco_a").await?.3.context("a customer")?);
    let second = sim.create("subscriptions", &form).await?;
    billing.event(&created("evt_3", &second)).await?;
    until(&db, NONE_WAITS).await?;
    record(&db, "eco_a", 7).await?;
    sim.cancel(&second).await?;
    billing.event(&updated("evt_4", &second)).await?;
    until(&db, NONE_WAITS).await?;
    record(&db, "eco_a", 1).await?;
    until(&db, "select exists (select from eco_usage_records where api_calls = 951)").await?;
    billing.stop().await
}

#[tokio::test]
async fn an_end_that_stripe_is_away_for_is_settled_by_a_repeat() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let pro = sim.price("pro").await?;
    let Subscribed { subscription, .. } = sim.subscribe(&pro, "&metadata[eco_id]=eco_a").await?;
    billing.event(&created("evt_1", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    record(&db, "eco_a", 100_500).await?;
    sim.cancel(&subscription).await?;
    // The process ends while the item is made.
    sim.fault(json!({ "hold": true })).await?;
    billing.event(&event("evt_2", "customer.subscription.deleted", json!({ "id": subscription }))).await?;
    sim.read("/held?at_least=1").await?;
    assert_eq!(account(&db, "eco_a").await?.0, "free", "that it has ended is committed before");
    billing.kill().await?;
    sim.admin("/release", json!({})).await?;
    let left = "select cleared_time is null and due_time > now() from eco_ended_subscriptions";
    assert!(sqlx::query_scalar::<_, bool>(left).fetch_one(&db.pool).await?);
    // Its time has come.
    sqlx::query("update eco_ended_subscriptions set due_time = now()").execute(&db.pool).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(sim.amounts().await?, [50]);
    let totals: Vec<i64> =
        sim.made_invoices().await?.iter().filter_map(|invoice| invoice["total"].as_i64()).collect();
    assert_eq!(totals, [50]);
    billing.stop().await
}

#[tokio::test]
async fn the_draft_of_a_cycle_is_settled_and_no_other() -> Result<()> {
    let db = TestDb::new().await?;
    let pool = db::pool(&db.args(), Role::Billing)?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
    let memory = Arc::new(MemorySubscriptions::default());
    let now = Utc::now();
    let subscription = Subscription {
        id: "sub_1".to_owned(),
        customer: "cus_1".to_owned(),
        status: SubscriptionStatus::Active,
        prices: vec![Price {
            id: "price_1".to_owned(),
            lookup_key: Some("pro".to_owned()),
            item_id: "si_1".to_owned(),
        }],
        anchor: anchor(),
        created: anchor(),
        ended: None,
        cancel_at: None,
        ends_by_date: false,
        eco_id: None,
    };
    // An older one of the account, which is superseded; and one of another product.
    let older = Subscription {
        id: "sub_0".to_owned(),
        created: anchor() - TimeDelta::days(1),
        ..subscription.clone()
    };
    let prices = vec![Price { id: "price_x".to_owned(), lookup_key: None, item_id: "si_2".to_owned() }];
    let foreign = Subscription { id: "sub_x".to_owned(), prices, ..subscription.clone() };
    for subscription in [subscription, older, foreign] {
        memory.state().subscriptions.insert(subscription.id.clone(), subscription);
    }
    let pace = Arc::new(Pace::new(NonZeroU32::new(10_000).context("not zero")?));
    let context = stripe_events::Context::new(memory.clone(), pace, 4);
    let draft = Draft { eco_id: "eco_a".to_owned(), invoice_id: "in_1".to_owned(), period_end: now };
    for (of, is_draft, is_of_cycle, goes_on, outcome, settled) in [
        ("sub_1", true, true, true, Outcome::Applied, Some(draft)),
        ("sub_1", false, true, true, Outcome::Applied, None),
        ("sub_1", true, false, true, Outcome::Applied, None),
        // Nobody finalises it.
        ("sub_1", true, true, false, Outcome::Applied, None),
        ("sub_0", true, true, true, Outcome::Applied, None),
        ("sub_x", true, true, true, Outcome::NotOurs, None),
    ] {
        let subscription = Some(of.to_owned());
        let invoice =
            Invoice { id: "in_1".to_owned(), subscription, is_draft, goes_on, is_of_cycle, period_end: now };
        memory.state().invoices.insert(invoice.id.clone(), invoice);
        let job = Job {
            event_id: "evt_1".to_owned(),
            kind: "invoice.created".to_owned(),
            object_id: "in_1".to_owned(),
            subscription_id: Some(of.to_owned()),
            attempts: 0,
        };
        let mut transaction = db::begin(&pool).await?;
        let applied = apply(&mut transaction, &context, &job).await?;
        transaction.commit().await?;
        assert_eq!(
            applied,
            Applied { outcome, draft: settled.clone() },
            "{of} {is_draft} {is_of_cycle} {goes_on}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_price_is_a_change_of_plan_and_the_newest_subscription_is_in_force() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let pro = sim.price("pro").await?;
    let old = sim.subscribe(&pro, "&metadata[eco_id]=eco_a").await?;
    billing.event(&created("evt_1", &old.subscription)).await?;
    until(&db, NONE_WAITS).await?;
    record(&db, "eco_a", 100_010).await?;
    // The price is of another plan now; an operator says so by its id, which goes before its lookup key.
    sqlx::query("insert into eco_stripe_prices values ($1, 'enterprise')")
        .bind(&pro)
        .execute(&db.pool)
        .await?;
    billing.event(&updated("evt_2", &old.subscription)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?.0, "enterprise");
    record(&db, "eco_a", 100).await?;
    assert_eq!(billing.overage("eco_a").await?.overage_count, 10, "of the segment before");

    // Another, made later.
    sim.admin("/clock", json!({ "advance_seconds": 5 })).await?;
    let form = format!("customer={}&items[0][price]={pro}", old.customer);
    let new = sim.create("subscriptions", &form).await?;
    billing.event(&created("evt_3", &new)).await?;
    until(&db, NONE_WAITS).await?;
    billing.event(&updated("evt_4", &old.subscription)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?.2, Some(new.clone()), "the older does not come back");
    // Until the newer ends: it is paid for still.
    sim.cancel(&new).await?;
    billing.event(&updated("evt_5", &new)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?.2, Some(old.subscription));
    billing.stop().await
}

#[tokio::test]
async fn what_is_nobodys_is_left_alone_until_a_name_leads_to_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let pro = sim.price("pro").await?;
    let Subscribed { customer, subscription } = sim.subscribe(&pro, "").await?;
    billing.event(&created("evt_1", &subscription)).await?;
    billing.event(&created("evt_2", "sub_gone")).await?;
    until(&db, NONE_WAITS).await?;
    let outcomes: Vec<(String, String)> =
        sqlx::query_as("select stripe_event_id, outcome from eco_stripe_events order by 1")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(outcomes, [("evt_1".into(), "not_ours".into()), ("evt_2".into(), "gone".into())]);
    assert_eq!(account(&db, "eco_a").await?.0, "free");

    sim.create(&format!("customers/{customer}"), "metadata[eco_id]=eco_a").await?;
    billing.event(&updated("evt_3", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?.0, "pro");

    // A closed account gets no plan any more.
    seed::account(&db.pool, "eco_b", Plan::Free, anchor()).await?;
    sqlx::query("update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_b'")
        .execute(&db.pool)
        .await?;
    let other = sim.subscribe(&pro, "&metadata[eco_id]=eco_b").await?;
    billing.event(&created("evt_4", &other.subscription)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_b").await?.0, "free");
    billing.stop().await
}

#[tokio::test]
async fn another_products_subscription_of_the_same_customer_is_left_alone() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let (pro, other) = (sim.price("pro").await?, sim.price("other").await?);
    let Subscribed { customer, subscription } = sim.subscribe(&pro, "&metadata[eco_id]=eco_a").await?;
    billing.event(&created("evt_1", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    sim.admin("/clock", json!({ "advance_seconds": 5 })).await?;
    let foreign =
        sim.create("subscriptions", &format!("customer={customer}&items[0][price]={other}")).await?;
    billing.event(&created("evt_2", &foreign)).await?;
    until(&db, NONE_WAITS).await?;
    let outcome = "select outcome from eco_stripe_events where stripe_event_id = 'evt_2'";
    assert_eq!(sqlx::query_scalar::<_, String>(outcome).fetch_one(&db.pool).await?, "not_ours");
    let expected = ("pro".into(), "active".into(), Some(subscription), Some(customer));
    assert_eq!(account(&db, "eco_a").await?, expected);
    billing.stop().await
}

#[tokio::test]
async fn what_fails_is_tried_again_and_at_once_when_stripe_sends_it_again() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let price = sim.price("gold").await?;
    let Subscribed { subscription, .. } = sim.subscribe(&price, "&metadata[eco_id]=eco_a").await?;
    // Stripe is in trouble, and then there is a price of no plan.
    let fault = json!({ "method": "GET", "path": "/v1/subscriptions/*", "outcome": { "kind": "error", "status": 500 } });
    sim.admin("/faults", fault).await?;
    billing.event(&created("evt_1", &subscription)).await?;
    until(&db, "select attempts >= 2 and failure like '%prices%' from eco_stripe_events").await?;
    assert_eq!(account(&db, "eco_a").await?.0, "free");
    // For the last time.
    sqlx::query("update eco_stripe_events set attempts = 19, due_time = now()").execute(&db.pool).await?;
    until(&db, "select parked_time is not null and attempts = 20 from eco_stripe_events").await?;
    sqlx::query("insert into eco_stripe_prices values ('gold', 'pro')").execute(&db.pool).await?;
    assert!(billing.event(&created("evt_1", &subscription)).await?.duplicate);
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?.0, "pro");
    let kept: (Option<String>, String) =
        sqlx::query_as("select failure, outcome from eco_stripe_events").fetch_one(&db.pool).await?;
    assert_eq!(kept, (None, "applied".into()));
    // Processed: a duplicate does nothing more.
    let reads = sim.reads(&subscription).await?;
    assert!(billing.event(&created("evt_1", &subscription)).await?.duplicate);
    billing.event(&updated("evt_2", &subscription)).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(sim.reads(&subscription).await?, reads + 1);
    billing.stop().await
}

#[tokio::test]
async fn an_event_whose_server_is_killed_is_applied_by_the_next() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let pro = sim.price("pro").await?;
    let Subscribed { subscription, .. } = sim.subscribe(&pro, "&metadata[eco_id]=eco_a").await?;
    let hold = json!({ "method": "GET", "path": "/v1/subscriptions/*", "hold": true });
    sim.admin("/faults", hold).await?;
    billing.event(&created("evt_1", &subscription)).await?;
    sim.read("/held?at_least=1").await?;
    billing.kill().await?;
    assert_eq!(account(&db, "eco_a").await?.0, "free");
    let untouched = "select processed_time is null and attempts = 0 from eco_stripe_events";
    assert!(sqlx::query_scalar::<_, bool>(untouched).fetch_one(&db.pool).await?);
    let billing = Billing::start(&db, &sim.base).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(account(&db, "eco_a").await?.0, "pro");
    billing.stop().await
}

#[tokio::test]
async fn two_replicas_apply_each_event_once() -> Result<()> {
    const ACCOUNTS: usize = 6;
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let replicas = [Billing::start(&db, &sim.base).await?, Billing::start(&db, &sim.base).await?];
    let pro = sim.price("pro").await?;
    let mut subscriptions = Vec::new();
    for i in 0..ACCOUNTS {
        seed::account(&db.pool, &format!("eco_{i}"), Plan::Free, anchor()).await?;
        let metadata = format!("&metadata[eco_id]=eco_{i}");
        subscriptions.push(sim.subscribe(&pro, &metadata).await?.subscription);
    }
    // Each three times under two ids, to both.
    let sent = (0..ACCOUNTS * 6).map(|n| {
        let (subscription, replica) = (&subscriptions[n % ACCOUNTS], &replicas[n % 2]);
        let id = format!("evt_{}_{}", n % ACCOUNTS, n / ACCOUNTS % 2);
        async move { replica.event(&created(&id, subscription)).await }
    });
    try_join_all(sent).await?;
    until(&db, NONE_WAITS).await?;
    for (i, subscription) in subscriptions.iter().enumerate() {
        let found = account(&db, &format!("eco_{i}")).await?;
        assert_eq!((found.0.as_str(), found.2.as_ref()), ("pro", Some(subscription)));
        assert_eq!(sim.reads(subscription).await?, 2, "once for each event");
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from eco_subscriptions").fetch_one(&db.pool).await?;
    assert_eq!(rows, 2 * ACCOUNTS as i64);
    let attempts: i64 =
        sqlx::query_scalar("select sum(attempts)::bigint from eco_stripe_events").fetch_one(&db.pool).await?;
    assert_eq!(attempts, 0);
    for replica in replicas {
        replica.stop().await?;
    }
    Ok(())
}

/// However many callers wait for Stripe, the pool is not theirs.
#[tokio::test]
async fn who_waits_for_a_turn_to_bring_our_tables_up_has_no_connection() -> Result<()> {
    let test = TestDb::new().await?;
    let pool = db::pool(&test.args(), Role::Billing)?;
    let pace = Arc::new(Pace::new(NonZeroU32::MAX));
    let none = stripe_events::Context::new(Arc::new(MemorySubscriptions::default()), pace, 0);
    ensure!(stripe_events::bring_up(&pool, &none, "sub_1", None).now_or_never().is_none());
    assert_eq!(pool.size(), 0);
    Ok(())
}
