//! Events of Stripe's that never come: a database that was restored to a time before them, or a webhook that was lost for
//! good. What subscriptions are is read again all the same.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_billing::{
    app::{
        reconcile::{Answer, Drift, Reconciler, Request},
        stripe_events,
    },
    domain::{
        reconciliation::{Kind, Scope},
        stripe_objects::{Price, Subscription},
    },
    payments::pace::Pace,
};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    memory::Memory,
    memory_subscriptions::MemorySubscriptions,
    support::{Billing, DEADLINE, NONE_WAITS, Sim, anchor, event, record, until},
};

/// What accounts have: plan, state, subscription.
async fn accounts(db: &TestDb) -> Result<Vec<(String, String, String, Option<String>)>> {
    let statement = "select eco_id, plan, status, stripe_subscription_id from eco_subscriptions
        where ended_time is null order by 1";
    Ok(sqlx::query_as(statement).fetch_all(&db.pool).await?)
}

fn has(eco_id: &str, plan: &str, id: Option<&str>) -> (String, String, String, Option<String>) {
    (eco_id.to_owned(), plan.to_owned(), "active".to_owned(), id.map(str::to_owned))
}

async fn subscribe(sim: &Sim, price: &str, eco_id: &str) -> Result<String> {
    let customer = sim.customer().await?;
    let form = format!("customer={customer}&items[0][price]={price}&metadata[eco_id]={eco_id}");
    sim.create("subscriptions", &form).await
}

#[tokio::test]
async fn a_charge_that_is_refused_for_a_subscription_has_ended_brings_its_end() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let subscription = subscribe(&sim, &sim.price("pro").await?, "eco_a").await?;
    let created = event("evt_1", "customer.subscription.created", json!({ "id": subscription }));
    billing.event(&created).await?;
    until(&db, NONE_WAITS).await?;
    record(&db, "eco_a", 100_500).await?;
    sim.cancel(&subscription).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    until(&db, NONE_WAITS).await?;
    assert_eq!(accounts(&db).await?, [has("eco_a", "free", None)]);
    // And what it owed is collected.
    assert_eq!(sim.amounts().await?, [50]);
    let invoices = sim.made_invoices().await?;
    ensure!(invoices.len() == 1 && invoices[0]["total"] == json!(50), "{invoices:?}");
    billing.stop().await
}

/// As soon as it is told to, although the event of each may still be on its way, and a request for each hundred.
#[tokio::test]
async fn what_stripe_lists_is_taken_over_by_a_repair() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    seed::account(&db.pool, "eco_ended", Plan::Free, anchor()).await?;
    seed::account(&db.pool, "eco_new", Plan::Free, anchor()).await?;
    let price = sim.price("pro").await?;
    let ended = subscribe(&sim, &price, "eco_ended").await?;
    billing.event(&event("evt_1", "customer.subscription.created", json!({ "id": ended }))).await?;
    until(&db, NONE_WAITS).await?;
    assert_eq!(accounts(&db).await?, [has("eco_ended", "pro", Some(&ended)), has("eco_new", "free", None)]);
    sim.cancel(&ended).await?;
    let new = subscribe(&sim, &price, "eco_new").await?;
    for _ in 0..220 {
        subscribe(&sim, &price, "eco_of_others").await?;
    }
    // Their events may come still.
    ensure!(billing.differences(false).await?.is_empty());
    assert_eq!(accounts(&db).await?[0], has("eco_ended", "pro", Some(&ended)));
    let path = "/requests?method=GET&path=/v1/subscriptions";
    let listed = sim.read(path).await?["requests"].as_array().map(Vec::len);
    assert_eq!(listed, Some(3), "222 are three pages");
    ensure!(billing.differences(true).await?.is_empty());
    until(&db, NONE_WAITS).await?;
    assert_eq!(accounts(&db).await?, [has("eco_ended", "free", None), has("eco_new", "pro", Some(&new))]);
    billing.stop().await
}

/// Stripe in memory, where each change has the time that a test gives it.
pub(crate) struct World {
    pub(crate) db: TestDb,
    pub(crate) memory: Arc<Memory>,
    stripe: Arc<MemorySubscriptions>,
    reconciler: Reconciler,
    now: DateTime<Utc>,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        let (db, stripe, memory) =
            (TestDb::new().await?, Arc::new(MemorySubscriptions::default()), Arc::new(Memory::new()));
        let pace = || Arc::new(Pace::new(NonZeroU32::MAX));
        let pool = db::pool(&db.args(), Role::Billing)?;
        let context = stripe_events::Context::new(stripe.clone(), pace(), 2);
        let shutdown = CancellationToken::new();
        let (payments, books) = (memory.clone(), memory.clone());
        let reconciler = Reconciler::new(pool, payments, books, context, pace(), Drift::default(), shutdown);
        Ok(Self { db, memory, stripe, reconciler, now: Utc::now() })
    }

    /// An account on pro by a subscription that Stripe has, which began when it says.
    async fn pro(&self, eco_id: &str) -> Result<()> {
        let id = eco_id.replace("eco", "sub");
        let found = Subscription {
            customer: eco_id.replace("eco", "cus"),
            status: SubscriptionStatus::Active,
            prices: vec![Price {
                id: "price_1".to_owned(),
                lookup_key: Some("pro".to_owned()),
                item_id: "si_1".to_owned(),
            }],
            anchor: self.began(),
            created: self.began(),
            ended: None,
            cancel_at: None,
            ends_by_date: false,
            eco_id: None,
            id: id.clone(),
        };
        seed::account(&self.db.pool, eco_id, Plan::Pro, self.began()).await?;
        seed::stripe_ids(&self.db.pool, eco_id, &found.customer, Some(&id)).await?;
        let before = "insert into eco_subscriptions
                 (eco_id, plan, plan_version, status, anchor_time, started_time, ended_time)
             values ($1, 'free', 1, 'active', $2, $2, $2)";
        sqlx::query(before).bind(eco_id).bind(self.began()).execute(&self.db.pool).await?;
        self.stripe.state().subscriptions.insert(id, found);
        Ok(())
    }

    fn began(&self) -> DateTime<Utc> {
        self.now - TimeDelta::days(3)
    }

    /// Alters a subscription at Stripe, so long ago.
    fn change(&self, id: &str, ago: TimeDelta, change: impl FnOnce(&mut Subscription)) {
        let mut state = self.stripe.state();
        state.changes.push((self.now - ago, id.to_owned()));
        state.subscriptions.entry(id.to_owned()).and_modify(change);
    }

    fn end(&self, id: &str, ago: TimeDelta) {
        let at = self.now - ago;
        self.change(id, ago, |found| (found.status, found.ended) = (SubscriptionStatus::Canceled, Some(at)));
    }

    /// Account, kind, and whether it was repaired, of the differences.
    async fn reconcile(&self, scope: Scope, repair: bool) -> Result<Vec<(String, Kind, bool)>> {
        let request = Request { request_id: None, scope, repair, actor: "admin:test".to_owned() };
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let Answer::Found(found) = self.reconciler.reconcile(request, Uuid::now_v7(), deadline).await? else {
            anyhow::bail!("another one is at work")
        };
        let told = found.findings.differences.into_iter();
        Ok(told.map(|d| (d.eco_id, d.kind, d.repaired)).collect())
    }

    pub(crate) async fn differences(&self, repair: bool) -> Result<Vec<(String, Kind, bool)>> {
        self.reconcile(Scope::default(), repair).await
    }
}

fn told(eco_id: &str, kind: Kind, repaired: bool) -> (String, Kind, bool) {
    (eco_id.to_owned(), kind, repaired)
}

const LONG: TimeDelta = TimeDelta::hours(2);

#[tokio::test]
async fn a_subscription_that_stands_otherwise_is_named_and_repaired() -> Result<()> {
    let world = World::new().await?;
    for eco_id in ["eco_ended", "eco_plan", "eco_same", "eco_gone"] {
        world.pro(eco_id).await?;
    }
    ensure!(world.differences(false).await?.is_empty());
    // A subscription of each that nobody told of.
    world.end("sub_ended", LONG);
    world.change("sub_plan", LONG, |found| found.prices[0].lookup_key = Some("enterprise".to_owned()));
    world.stripe.state().subscriptions.remove("sub_gone");
    seed::account(&world.db.pool, "eco_new", Plan::Free, world.began()).await?;
    let same = world.stripe.state().subscriptions["sub_same"].clone();
    let new = Subscription {
        id: "sub_new".to_owned(),
        customer: "cus_new".to_owned(),
        created: world.now - LONG,
        anchor: world.now - LONG,
        eco_id: Some("eco_new".to_owned()),
        ..same
    };
    world.stripe.state().subscriptions.insert(new.id.clone(), new);

    let differ = |repaired| {
        [
            told("eco_ended", Kind::SubscriptionDiffers, repaired),
            told("eco_gone", Kind::SubscriptionMissing, false),
            told("eco_new", Kind::SubscriptionExtra, repaired),
            told("eco_plan", Kind::SubscriptionDiffers, repaired),
        ]
    };
    assert_eq!(world.differences(false).await?, differ(false));
    let only = Scope { accounts: Some(vec!["eco_plan".to_owned()]), period_time: None };
    assert_eq!(world.reconcile(only, false).await?, [differ(false)[3].clone()]);
    let earlier = Scope { accounts: None, period_time: Some(world.now - TimeDelta::days(40)) };
    ensure!(world.reconcile(earlier, false).await?.is_empty(), "periods of before have no subscription");

    let last: i64 =
        sqlx::query_scalar("select max(audit_id) from eco_audit_log").fetch_one(&world.db.pool).await?;
    assert_eq!(world.differences(true).await?, differ(true));
    let by = "select distinct subject, actor from eco_audit_log where audit_id > $1 order by 1";
    let by: Vec<(String, String)> = sqlx::query_as(by).bind(last).fetch_all(&world.db.pool).await?;
    let of = |subject: &str| (subject.to_owned(), "admin:test".to_owned());
    assert_eq!(by, [of("account"), of("subscription")]);
    assert_eq!(
        accounts(&world.db).await?,
        [
            has("eco_ended", "free", None),
            has("eco_gone", "pro", Some("sub_gone")),
            has("eco_new", "pro", Some("sub_new")),
            has("eco_plan", "enterprise", Some("sub_plan")),
            has("eco_same", "pro", Some("sub_same")),
        ]
    );
    assert_eq!(world.differences(true).await?, [told("eco_gone", Kind::SubscriptionMissing, false)]);
    Ok(())
}

#[tokio::test]
async fn what_an_event_may_still_bring_is_no_difference() -> Result<()> {
    let world = World::new().await?;
    for eco_id in ["eco_late", "eco_stored", "eco_lost"] {
        world.pro(eco_id).await?;
    }
    world.end("sub_late", TimeDelta::minutes(50));
    world.end("sub_stored", LONG);
    world.end("sub_lost", LONG);
    let waits = "insert into eco_stripe_events (stripe_event_id, type, payload, object_id, subscription_id)
        values ('evt_1', 'customer.subscription.deleted', '{}', 'sub_stored', 'sub_stored')";
    sqlx::query(waits).execute(&world.db.pool).await?;
    assert_eq!(world.differences(false).await?, [told("eco_lost", Kind::SubscriptionDiffers, false)]);
    // One that is given up comes no more.
    sqlx::query("update eco_stripe_events set parked_time = now()").execute(&world.db.pool).await?;
    assert_eq!(world.differences(false).await?.len(), 2);
    // A checkout that the customer has not paid for yet.
    seed::account(&world.db.pool, "eco_new", Plan::Free, world.began()).await?;
    let new = Subscription {
        id: "sub_new".to_owned(),
        customer: "cus_new".to_owned(),
        status: SubscriptionStatus::Incomplete,
        eco_id: Some("eco_new".to_owned()),
        ..world.stripe.state().subscriptions["sub_late"].clone()
    };
    let new = Subscription { ended: None, ..new };
    world.stripe.state().subscriptions.insert(new.id.clone(), new);
    ensure!(world.differences(false).await?.iter().all(|(eco_id, ..)| eco_id != "eco_new"));
    Ok(())
}

/// One that cannot be read, for whatever reason, is named, and the others and the ledger are compared all the same.
#[tokio::test]
async fn a_subscription_that_cannot_be_read_holds_up_no_other() -> Result<()> {
    let world = World::new().await?;
    for eco_id in ["eco_broken", "eco_ended"] {
        world.pro(eco_id).await?;
    }
    for id in ["sub_broken", "sub_ended"] {
        world.end(id, LONG);
    }
    world.stripe.state().unreadable = Some("sub_broken".to_owned());
    assert_eq!(
        world.differences(true).await?,
        [
            told("eco_broken", Kind::SubscriptionDiffers, false),
            told("eco_ended", Kind::SubscriptionDiffers, true)
        ]
    );
    Ok(())
}
