//! Subscriptions at Stripe that are sold and changed from here, over the ports in memory: whatever is cut off, there is
//! one, and our tables say what Stripe says.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_billing::{
    Error,
    app::{
        change_plan, close_account, create_account, get_subscription,
        sales::{Pages, Sales, change, checkout, worker},
        stripe_events,
    },
    domain::{
        account::NewAccount,
        plan_change::{PlanChange, PlanChanged},
        stripe_objects::{Price, Subscription},
    },
    payments::pace::Pace,
};
use nexus_core::{
    id::EcoId,
    money::Currency,
    plan::{Plan, SubscriptionStatus},
};
use nexus_kit::{
    db::{self, Role},
    status,
};
use nexus_proto::{
    billing::v1::{ChangePlanRequest, GetSubscriptionRequest},
    common::v1 as common,
};
use nexus_testkit::{db::TestDb, seed, settings};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    memory::Fault,
    memory_subscriptions::MemorySubscriptions,
    support::{Billing, anchor, until, user},
};

struct World {
    db: TestDb,
    memory: Arc<MemorySubscriptions>,
    sales: Sales,
    eco_id: EcoId,
}

impl World {
    /// A free account, and prices of both plans.
    async fn new() -> Result<Self> {
        let db = TestDb::new().await?;
        let memory = Arc::new(MemorySubscriptions::default());
        memory.add_price("price_pro", "pro", "usd");
        memory.add_price("price_enterprise", "enterprise", "usd");
        seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
        let pace = Arc::new(Pace::new(NonZeroU32::new(10_000).context("not zero")?));
        let pool = db::pool(&db.args(), Role::Billing)?;
        let events = stripe_events::Context { subscriptions: memory.clone(), pace };
        let sales = Sales::new(pool, memory.clone(), events, Pages::of("https://example.com/billing"));
        Ok(Self { db, memory, sales, eco_id: EcoId::parse("eco_a")? })
    }

    /// The same, subscribed to a plan since a few days ago.
    async fn subscribed(plan: Plan) -> Result<Self> {
        let world = Self::new().await?;
        let began = DateTime::from_timestamp(anchor().timestamp(), 0).context("a time")?;
        let subscription = Subscription {
            id: "sub_1".to_owned(),
            customer: "cus_1".to_owned(),
            status: SubscriptionStatus::Active,
            prices: vec![Price {
                id: format!("price_{plan}"),
                lookup_key: Some(plan.to_string()),
                item_id: "si_1".to_owned(),
            }],
            anchor: began,
            created: began,
            ended: None,
            cancel_at: None,
            eco_id: Some("eco_a".to_owned()),
        };
        world.memory.state().subscriptions.insert(subscription.id.clone(), subscription);
        stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
        assert_eq!(world.account().await?, (plan.to_string(), Some("sub_1".to_owned()), None, false));
        Ok(world)
    }

    /// Plan, subscription at Stripe, plan that waits, whether it is to end.
    async fn account(&self) -> Result<(String, Option<String>, Option<String>, bool)> {
        let statement = "select plan, stripe_subscription_id, next_plan, cancel_time is not null
            from eco_subscriptions where eco_id = 'eco_a' order by ended_time desc nulls first, subscription_id desc
            limit 1";
        Ok(sqlx::query_as(statement).fetch_one(&self.db.pool).await?)
    }

    fn at_stripe(&self) -> Result<Subscription> {
        self.memory.state().subscriptions.get("sub_1").cloned().context("a subscription")
    }

    async fn change(&self, plan: Plan, apply_now: bool) -> Result<PlanChanged, Error> {
        let eco_id = self.eco_id.clone();
        let change = PlanChange { eco_id, plan, apply_now, request_id: None, by_user: true };
        change_plan::run(&self.sales, &change, "user:eco_a").await
    }

    async fn checkout(&self, plan: Plan) -> Result<checkout::OpenCheckout, Error> {
        checkout::run(&self.sales, &self.eco_id, plan, "user:eco_a").await
    }

    /// Nothing is left to be made at Stripe.
    async fn nothing_is_left(&self) -> Result<()> {
        until(&self.db, "select not exists (select from eco_stripe_changes where finished_time is null)")
            .await
    }
}

#[tokio::test]
async fn an_upgrade_is_made_at_stripe_at_once_and_a_downgrade_with_the_period() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let before = Utc::now();
    let changed = world.change(Plan::Enterprise, false).await?;
    ensure!(changed.apply_time >= before && changed.account.plan == Plan::Enterprise, "{changed:?}");
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));

    // Stripe has the lower price from now on, which the next invoice has; the plan stays for what is paid.
    let changed = world.change(Plan::Pro, false).await?;
    ensure!(changed.apply_time > before + TimeDelta::days(20), "{changed:?}");
    assert_eq!(world.at_stripe()?.prices[0].id, "price_pro");
    let waits = ("enterprise".into(), Some("sub_1".into()), Some("pro".into()), false);
    assert_eq!(world.account().await?, waits);
    assert_eq!(world.change(Plan::Pro, false).await?.apply_time, changed.apply_time, "it waits already");
    // Its event changes nothing more.
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
    assert_eq!(world.account().await?, waits);
    let shown = get_subscription::run(&world.sales.pool, &world.eco_id).await?;
    assert_eq!(shown.monthly.map(|monthly| monthly.0), Some(500_000_000));

    // Taken back.
    world.change(Plan::Enterprise, false).await?;
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    // Now.
    world.change(Plan::Pro, true).await?;
    assert_eq!(world.account().await?, ("pro".into(), Some("sub_1".into()), None, false));
    world.nothing_is_left().await
}

#[tokio::test]
async fn free_is_the_end_of_the_subscription_and_can_be_taken_back() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let changed = world.change(Plan::Free, false).await?;
    assert_eq!(Some(changed.apply_time), world.at_stripe()?.cancel_at);
    let ends = ("pro".into(), Some("sub_1".into()), None, true);
    assert_eq!(world.account().await?, ends);
    change::end(&world.sales, &world.eco_id, false, "user:eco_a").await?;
    assert_eq!(world.account().await?, ends);
    for _ in 0..2 {
        change::go_on(&world.sales, &world.eco_id, "user:eco_a").await?;
        assert_eq!(world.at_stripe()?.cancel_at, None);
        assert_eq!(world.account().await?, ("pro".into(), Some("sub_1".into()), None, false));
    }
    // An upgrade takes an end back, too.
    change::end(&world.sales, &world.eco_id, false, "user:eco_a").await?;
    world.change(Plan::Enterprise, false).await?;
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    change::end(&world.sales, &world.eco_id, true, "user:eco_a").await?;
    assert_eq!(world.account().await?, ("free".into(), None, None, false));
    ensure!(world.at_stripe()?.ended.is_some());
    for result in [
        change::go_on(&world.sales, &world.eco_id, "user:eco_a").await,
        change::end(&world.sales, &world.eco_id, false, "user:eco_a").await,
    ] {
        ensure!(matches!(result, Err(Error::NoSubscription(_))), "{result:?}");
    }
    world.nothing_is_left().await
}

#[tokio::test]
async fn whatever_goes_wrong_with_a_change_it_is_made() -> Result<()> {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::StoredError, Fault::StoredErrorAfterEffect] {
        let world = World::subscribed(Plan::Pro).await?;
        world.memory.fail_next(fault);
        world.change(Plan::Enterprise, false).await?;
        assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise", "{fault:?}");
        assert_eq!(world.account().await?.0, "enterprise", "{fault:?}");
        world.nothing_is_left().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_change_whose_caller_is_gone_is_made_by_the_server() -> Result<()> {
    let world = World::subscribed(Plan::Enterprise).await?;
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        changed = world.change(Plan::Pro, false) => anyhow::bail!("it ended: {changed:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    // What waits is written down before Stripe is asked.
    assert_eq!(world.account().await?.2.as_deref(), Some("pro"));
    let open = "select count(*) from eco_stripe_changes where finished_time is null";
    assert_eq!(sqlx::query_scalar::<_, i64>(open).fetch_one(&world.db.pool).await?, 1);
    // Its own time is over.
    sqlx::query("update eco_stripe_changes set due_time = now()").execute(&world.db.pool).await?;
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(worker::run(world.sales.clone(), shutdown.clone()));
    world.nothing_is_left().await?;
    shutdown.cancel();
    server.await?;
    assert_eq!(world.at_stripe()?.prices[0].id, "price_pro");
    assert_eq!(
        world.account().await?,
        ("enterprise".into(), Some("sub_1".into()), Some("pro".into()), false)
    );
    Ok(())
}

#[tokio::test]
async fn what_stripe_refuses_changes_nothing() -> Result<()> {
    let world = World::subscribed(Plan::Enterprise).await?;
    // The price is withdrawn between the two looks.
    world.memory.state().prices[0].is_active = false;
    let refused = world.change(Plan::Pro, false).await;
    ensure!(matches!(refused, Err(Error::NoPriceAtStripe { plan: Plan::Pro, .. })), "{refused:?}");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    world.memory.state().prices[0].is_active = true;
    world.memory.refuse_next();
    let refused = world.change(Plan::Pro, false).await;
    ensure!(matches!(refused, Err(Error::StripeRefused(_))), "{refused:?}");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    world.nothing_is_left().await
}

#[tokio::test]
async fn one_checkout_is_open_and_leads_to_one_subscription() -> Result<()> {
    let world = World::new().await?;
    let opened = world.checkout(Plan::Pro).await?;
    assert_eq!(world.checkout(Plan::Pro).await?, opened);
    assert_eq!(world.memory.open_sessions(), [opened.session_id.clone()]);
    // Of another plan: the first is ended before.
    let other = world.checkout(Plan::Enterprise).await?;
    assert_eq!(world.memory.open_sessions(), [other.session_id.clone()]);
    let again = world.checkout(Plan::Pro).await?;
    assert_eq!(world.memory.open_sessions(), [again.session_id.clone()]);
    let subscription = world.memory.go_through(&again.session_id).context("a subscription")?;
    // Before its event is heard.
    for plan in [Plan::Pro, Plan::Enterprise] {
        let refused = world.checkout(plan).await;
        ensure!(matches!(refused, Err(Error::AlreadySubscribed(_))), "{refused:?}");
    }
    assert_eq!(world.account().await?, ("pro".into(), Some(subscription), None, false));
    ensure!(world.memory.open_sessions().is_empty());
    // After its end there may be another.
    change::end(&world.sales, &world.eco_id, true, "user:eco_a").await?;
    let second = world.checkout(Plan::Pro).await?;
    assert_eq!(world.memory.open_sessions(), [second.session_id]);
    Ok(())
}

#[tokio::test]
async fn a_checkout_that_is_cut_off_anywhere_never_makes_a_second_one_that_can_be_used() -> Result<()> {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::NoAnswer] {
        let world = World::new().await?;
        world.memory.fail_next(fault);
        if fault == Fault::NoAnswer {
            tokio::select! {
                opened = world.checkout(Plan::Pro) => anyhow::bail!("it ended: {opened:?}"),
                () = world.memory.until_unanswered(1) => {}
            }
        } else {
            let left = world.checkout(Plan::Pro).await;
            ensure!(matches!(left, Err(Error::StripeUnavailable(_))), "{fault:?}: {left:?}");
        }
        let opened = world.checkout(Plan::Pro).await?;
        assert_eq!(world.memory.open_sessions(), [opened.session_id], "{fault:?}");
    }
    // An error that is kept for the key: nobody ever hears of what it may have made.
    let world = World::new().await?;
    world.memory.fail_next(Fault::StoredErrorAfterEffect);
    let failed = world.checkout(Plan::Pro).await;
    ensure!(failed.is_err(), "{failed:?}");
    let unheard = world.memory.open_sessions();
    let opened = world.checkout(Plan::Pro).await?;
    ensure!(!unheard.contains(&opened.session_id));
    // One whose time is over is no more.
    sqlx::query("update eco_checkouts set created_time = created_time - interval '1 day'")
        .execute(&world.db.pool)
        .await?;
    let later = world.checkout(Plan::Pro).await?;
    assert_ne!(later.session_id, opened.session_id);
    Ok(())
}

#[tokio::test]
async fn a_closed_account_pays_for_nothing_more() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let opened = {
        // A checkout that was open before the account had what it has.
        let eco_id = EcoId::parse("eco_b")?;
        seed::account(&world.db.pool, "eco_b", Plan::Free, anchor()).await?;
        let opened = checkout::run(&world.sales, &eco_id, Plan::Pro, "user:eco_b").await?;
        close_account::run(&world.sales, &eco_id, "test").await?;
        opened
    };
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        closed = close_account::run(&world.sales, &world.eco_id, "test") => anyhow::bail!("it ended: {closed:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    let late = world.memory.go_through(&opened.session_id).context("a subscription")?;
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, &late, None).await?;
    sqlx::query("update eco_stripe_changes set due_time = now()").execute(&world.db.pool).await?;
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(worker::run(world.sales.clone(), shutdown.clone()));
    world.nothing_is_left().await?;
    shutdown.cancel();
    server.await?;
    let state = world.memory.state();
    for id in ["sub_1", &late] {
        ensure!(state.subscriptions.get(id).is_some_and(|found| found.ended.is_some()), "{id}");
    }
    Ok(())
}

#[tokio::test]
async fn an_account_is_created_with_what_its_subscription_is_at_stripe() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let other = Subscription {
        id: "sub_2".to_owned(),
        customer: "cus_2".to_owned(),
        eco_id: None,
        ..world.at_stripe()?
    };
    world.memory.state().subscriptions.insert(other.id.clone(), other.clone());
    let new = NewAccount {
        eco_id: EcoId::parse("eco_new")?,
        email: None,
        plan: Plan::Pro,
        stripe_customer_id: Some("cus_2".to_owned()),
        stripe_subscription_id: Some("sub_2".to_owned()),
        anchor_time: None,
        currency: Currency::USD,
        request_id: None,
    };
    for (wrong, field) in [
        (NewAccount { plan: Plan::Enterprise, ..new.clone() }, "plan"),
        (NewAccount { stripe_customer_id: Some("cus_1".to_owned()), ..new.clone() }, "stripe_customer_id"),
        (
            NewAccount { stripe_subscription_id: Some("sub_x".to_owned()), ..new.clone() },
            "stripe_subscription_id",
        ),
    ] {
        match create_account::run(&world.sales, &wrong, "test").await {
            Err(Error::Invalid(violations)) => {
                let fields: Vec<_> = violations.0.iter().map(|v| v.field.as_str()).collect();
                assert_eq!(fields, [field]);
            }
            other => anyhow::bail!("{field}: {other:?}"),
        }
    }
    let created = create_account::run(&world.sales, &new, "test").await?;
    ensure!((created.anchor_time - other.anchor).abs() < TimeDelta::seconds(1), "{created:?}");
    Ok(())
}

/// Over gRPC, without a Stripe.
#[tokio::test]
async fn a_user_gets_a_plan_that_is_paid_for_only_by_a_checkout_and_an_admin_gives_it() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, "http://127.0.0.1:9/").await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let change = |plan: common::Plan| ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: plan.into(),
        ..ChangePlanRequest::default()
    };
    let ask = async |who: &str, plan| {
        billing
            .client
            .clone()
            .change_plan(user(who)?.request(change(plan)))
            .await
            .map_err(anyhow::Error::from)
    };
    let refused = ask("eco_a", common::Plan::Pro).await.err().context("not refused")?;
    let refused = refused.downcast::<tonic::Status>()?;
    assert_eq!(
        (refused.code(), status::reason(&refused).as_str()),
        (Code::FailedPrecondition, "CHECKOUT_REQUIRED")
    );
    let given = ask(settings::ADMIN, common::Plan::Enterprise).await?.into_inner();
    assert_eq!(given.account.context("an account")?.plan(), common::Plan::Enterprise);
    // A lower one that is paid for is none that was given.
    let refused = ask("eco_a", common::Plan::Pro).await;
    ensure!(refused.is_err(), "{refused:?}");
    ask("eco_a", common::Plan::Free).await?;
    ask("eco_a", common::Plan::Enterprise).await?;
    let request = user("eco_a")?.request(GetSubscriptionRequest::default());
    let shown = billing.client.clone().get_subscription(request).await?.into_inner();
    let shown = shown.subscription.context("a subscription")?;
    assert_eq!((shown.plan(), shown.next_plan()), (common::Plan::Enterprise, common::Plan::Unspecified));
    ensure!(shown.stripe_subscription_id.is_empty() && shown.cancel_time.is_none(), "{shown:?}");
    tokio::time::timeout(Duration::from_secs(10), billing.stop()).await?
}
