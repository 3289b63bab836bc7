//! An account that is sold to, over the ports in memory.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context, Result};
use chrono::DateTime;
use nexus_billing::{
    Error,
    app::{
        change_plan,
        sales::{Pages, Sales, change, checkout, worker},
        stripe_events,
    },
    domain::{
        plan_change::{PlanChange, PlanChanged},
        sale::{OpenCheckout, ShownSubscription},
        stripe_objects::{Price, Subscription},
    },
    payments::pace::Pace,
};
use nexus_core::{
    id::EcoId,
    plan::{Plan, SubscriptionStatus},
};
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};
use tokio_util::sync::CancellationToken;

use crate::{
    memory_subscriptions::MemorySubscriptions,
    support::{anchor, until},
};

const NOTHING_IS_LEFT: &str = "select not exists (select from eco_stripe_changes where finished_time is null)
    and not exists (select from eco_checkouts where closed_time is null and end_due_time is not null)
    and not exists (select from eco_stripe_customers where finished_time is null)";

/// An account, and a Stripe in memory.
pub(crate) struct World {
    pub(crate) db: TestDb,
    pub(crate) memory: Arc<MemorySubscriptions>,
    pub(crate) sales: Sales,
    pub(crate) eco_id: EcoId,
}

impl World {
    /// A free account, and prices of both plans.
    pub(crate) async fn new() -> Result<Self> {
        let db = TestDb::new().await?;
        let memory = Arc::new(MemorySubscriptions::default());
        memory.add_price("price_pro", "pro", "usd");
        memory.add_price("price_enterprise", "enterprise", "usd");
        seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
        let pace = Arc::new(Pace::new(NonZeroU32::new(10_000).context("not zero")?));
        let pool = db::pool(&db.args(), Role::Billing)?;
        let events = stripe_events::Context::new(memory.clone(), pace, 4);
        let sales = Sales::new(pool, memory.clone(), events, Pages::of("https://example.com/billing"));
        Ok(Self { db, memory, sales, eco_id: EcoId::parse("eco_a")? })
    }

    /// The same, subscribed to a plan since a few days ago.
    pub(crate) async fn subscribed(plan: Plan) -> Result<Self> {
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
            ends_by_date: false,
            eco_id: Some("eco_a".to_owned()),
        };
        world.memory.state().subscriptions.insert(subscription.id.clone(), subscription);
        stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
        assert_eq!(world.account().await?, (plan.to_string(), Some("sub_1".to_owned()), None, false));
        Ok(world)
    }

    /// Plan, subscription at Stripe, plan that waits, whether it is to end.
    pub(crate) async fn account(&self) -> Result<(String, Option<String>, Option<String>, bool)> {
        let statement = "select plan, stripe_subscription_id, next_plan, cancel_time is not null
            from eco_subscriptions where eco_id = 'eco_a' order by ended_time desc nulls first, subscription_id desc
            limit 1";
        Ok(sqlx::query_as(statement).fetch_one(&self.db.pool).await?)
    }

    pub(crate) fn at_stripe(&self) -> Result<Subscription> {
        self.memory.state().subscriptions.get("sub_1").cloned().context("a subscription")
    }

    pub(crate) async fn change(&self, plan: Plan, apply_now: bool) -> Result<PlanChanged, Error> {
        let eco_id = self.eco_id.clone();
        let change = PlanChange { eco_id, plan, apply_now, request_id: None, by_user: true };
        change_plan::run(&self.sales, &change, "user:eco_a").await
    }

    pub(crate) async fn checkout(&self, plan: Plan) -> Result<OpenCheckout, Error> {
        checkout::run(&self.sales, &self.eco_id, plan, None, "user:eco_a").await
    }

    pub(crate) async fn end(&self, apply_now: bool) -> Result<ShownSubscription, Error> {
        change::end(&self.sales, &self.eco_id, apply_now, None, "user:eco_a").await
    }

    pub(crate) async fn go_on(&self) -> Result<ShownSubscription, Error> {
        change::go_on(&self.sales, &self.eco_id, None, "user:eco_a").await
    }

    /// Lets the server make what is left.
    pub(crate) async fn work_off(&self) -> Result<()> {
        sqlx::query("update eco_stripe_changes set due_time = now()").execute(&self.db.pool).await?;
        sqlx::query("update eco_stripe_customers set due_time = now()").execute(&self.db.pool).await?;
        sqlx::query("update eco_checkouts set end_due_time = now() where end_due_time is not null")
            .execute(&self.db.pool)
            .await?;
        self.serve_until(NOTHING_IS_LEFT).await
    }

    /// Lets the server work until a query answers true.
    pub(crate) async fn serve_until(&self, query: &'static str) -> Result<()> {
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(worker::run(self.sales.clone(), shutdown.clone()));
        until(&self.db, query).await?;
        shutdown.cancel();
        Ok(server.await?)
    }

    /// Lets the server make what is left, time and again, however long it would wait in between.
    pub(crate) async fn work_off_all(&self) -> Result<()> {
        let due = "with due as (update eco_stripe_changes set due_time = now()
                                where finished_time is null and due_time > now() + interval '1 second'
                                returning change_id)
            select not exists (select from eco_stripe_changes where finished_time is null)";
        self.serve_until(due).await
    }

    /// Attempts of the changes, oldest first.
    pub(crate) async fn attempts(&self) -> Result<Vec<i32>> {
        let statement = "select attempt from eco_stripe_changes order by change_id";
        Ok(sqlx::query_scalar(statement).fetch_all(&self.db.pool).await?)
    }

    /// Nothing is left to be made at Stripe.
    pub(crate) async fn nothing_is_left(&self) -> Result<()> {
        until(&self.db, NOTHING_IS_LEFT).await
    }
}
