//! A subscription's life at Stripe, told by its events in every order and twice: our tables come to the same. What is
//! charged with it is `life_ledger`'s.
//!
//! The orders are walked as a tree within one transaction: what two have in common is applied once, and a savepoint goes
//! back to where they part. An event is heard at the earliest when it has happened, so that Stripe stands, at each step,
//! at the latest event that was heard.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use futures::future::{BoxFuture, FutureExt};
use nexus_billing::{
    app::{
        refresh,
        stripe_events::{Context, apply::apply},
    },
    domain::{
        period::PeriodKey,
        stripe_event::Outcome,
        stripe_objects::{CheckoutSession, CheckoutState, Invoice, Price, Subscription},
    },
    payments::pace::Pace,
    store::stripe_events::Job,
};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_kit::db;
use nexus_testkit::{db::TestDb, seed};
use sqlx::{Acquire, PgConnection};

use crate::memory_subscriptions::MemorySubscriptions;

const ACCOUNT: &str = "eco_life";
const EVENTS: [(&str, &str); 7] = [
    ("customer.subscription.created", "sub_1"),
    ("checkout.session.completed", "cs_1"),
    ("invoice.payment_failed", "in_1"),
    ("customer.subscription.updated", "sub_1"),
    ("invoice.payment_succeeded", "in_1"),
    ("customer.subscription.updated", "sub_1"),
    ("customer.subscription.deleted", "sub_1"),
];
/// Calls that are counted after each event that is heard.
const CALLS: i64 = 10;

/// The world at Stripe once so many of the events have happened.
fn stand(memory: &MemorySubscriptions, now: DateTime<Utc>, happened: usize) {
    let (status, price) = match happened {
        0..=2 => (SubscriptionStatus::Active, "price_pro"),
        3..=4 => (SubscriptionStatus::PastDue, "price_pro"),
        5 => (SubscriptionStatus::Active, "price_pro"),
        6 => (SubscriptionStatus::Active, "price_enterprise"),
        _ => (SubscriptionStatus::Canceled, "price_enterprise"),
    };
    let created = now - TimeDelta::hours(2);
    let subscription = Subscription {
        id: "sub_1".to_owned(),
        customer: "cus_1".to_owned(),
        status,
        prices: vec![Price { id: price.to_owned(), lookup_key: None, item_id: "si_1".to_owned() }],
        anchor: created,
        created,
        cancel_at: None,
        ends_by_date: false,
        ended: (happened >= 7).then(|| now - TimeDelta::minutes(5)),
        eco_id: None,
    };
    let session = CheckoutSession {
        id: "cs_1".to_owned(),
        eco_id: Some(ACCOUNT.to_owned()),
        subscription: Some("sub_1".to_owned()),
        state: CheckoutState::Complete,
        url: None,
    };
    let invoice = Invoice {
        id: "in_1".to_owned(),
        subscription: Some("sub_1".to_owned()),
        is_draft: false,
        goes_on: true,
        is_of_cycle: true,
        period_end: created,
    };
    let mut state = memory.state();
    state.subscriptions.insert(subscription.id.clone(), subscription);
    state.sessions.insert("cs_1".to_owned(), session);
    state.invoices.insert(invoice.id.clone(), invoice);
}

struct Life {
    context: Context,
    memory: Arc<MemorySubscriptions>,
    now: DateTime<Utc>,
    anchor: DateTime<Utc>,
}

/// What must be the same in the end: the account's present subscription, its customer, and the one at Stripe.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct End {
    plan: String,
    status: String,
    anchor_time: DateTime<Utc>,
    stripe_subscription_id: Option<String>,
    stripe_customer_id: Option<String>,
    was_plan: String,
    was_status: String,
    was_anchor: DateTime<Utc>,
    was_ended: DateTime<Utc>,
}

const END: &str = "select s.plan, s.status, s.anchor_time, s.stripe_subscription_id, i.stripe_customer_id,
        w.plan as was_plan, w.status as was_status, w.anchor_time as was_anchor, w.ended_time as was_ended
    from eco_identities i
    join eco_subscriptions s on s.eco_id = i.eco_id and s.ended_time is null
    join eco_subscriptions w on w.eco_id = i.eco_id and w.stripe_subscription_id = 'sub_1'";

impl Life {
    async fn hear(&self, db: &mut PgConnection, event: usize) -> Result<()> {
        let (kind, object_id) = EVENTS[event];
        let job = Job {
            event_id: format!("evt_{event}"),
            kind: kind.to_owned(),
            object_id: object_id.to_owned(),
            subscription_id: Some("sub_1".to_owned()),
            attempts: 0,
        };
        let outcome = apply(db, &self.context, &job).await?.outcome;
        ensure!(matches!(outcome, Outcome::Applied | Outcome::NotOurs), "{kind}: {outcome:?}");
        Ok(())
    }

    /// Hears each of the others next, and goes on from there.
    fn walk<'a>(
        &'a self,
        db: &'a mut PgConnection,
        heard: Vec<usize>,
        only: Option<usize>,
    ) -> BoxFuture<'a, Result<usize>> {
        async move {
            if heard.len() == EVENTS.len() {
                self.check_end(db, &heard).await.with_context(|| format!("in the order {heard:?}"))?;
                return Ok(1);
            }
            let mut orders = 0;
            for next in (0..EVENTS.len()).filter(|n| !heard.contains(n) && only.is_none_or(|only| *n == only))
            {
                let order: Vec<usize> = heard.iter().copied().chain([next]).collect();
                let happened = order.iter().max().map_or(0, |last| last + 1);
                stand(&self.memory, self.now, happened);
                let mut savepoint = db.begin().await?;
                self.hear(&mut savepoint, next).await.with_context(|| format!("in the order {order:?}"))?;
                // Once more, and one from before.
                self.hear(&mut savepoint, next).await?;
                self.hear(&mut savepoint, order[order.len() / 2]).await?;
                sqlx::query("select increment_api_calls($1, $2)")
                    .bind(ACCOUNT)
                    .bind(CALLS)
                    .execute(&mut *savepoint)
                    .await?;
                orders += self.walk(&mut savepoint, order, None).await?;
                savepoint.rollback().await?;
            }
            Ok(orders)
        }
        .boxed()
    }

    async fn check_end(&self, db: &mut PgConnection, order: &[usize]) -> Result<()> {
        let end: End = sqlx::query_as(END).fetch_one(&mut *db).await?;
        let expected = End {
            plan: "free".to_owned(),
            status: "active".to_owned(),
            anchor_time: self.anchor,
            stripe_subscription_id: None,
            stripe_customer_id: Some("cus_1".to_owned()),
            was_plan: "enterprise".to_owned(),
            was_status: "canceled".to_owned(),
            was_anchor: self.now - TimeDelta::hours(2),
            was_ended: self.now - TimeDelta::minutes(5),
        };
        ensure!(end == expected, "{end:?} is not {expected:?}");
        // It is to be cleared, whatever was heard last.
        let noted: Vec<(String, DateTime<Utc>)> = sqlx::query_as(
            "select s.stripe_subscription_id, e.ended_time from eco_ended_subscriptions e
             join eco_subscriptions s on s.subscription_id = e.subscription_id where e.cleared_time is null",
        )
        .fetch_all(&mut *db)
        .await?;
        ensure!(noted == [("sub_1".to_owned(), expected.was_ended)], "{noted:?}");
        // Every call is in one period, and the summaries say so.
        let keys: Vec<(String, DateTime<Utc>)> =
            sqlx::query_as("select distinct eco_id, period_start from eco_usage_counters")
                .fetch_all(&mut *db)
                .await?;
        let keys: Vec<PeriodKey> =
            keys.into_iter().map(|(eco_id, start)| PeriodKey { eco_id, start }).collect();
        refresh::refresh(db, &keys).await?;
        let calls: i64 = sqlx::query_scalar("select sum(api_calls)::bigint from eco_usage_records")
            .fetch_one(&mut *db)
            .await?;
        ensure!(calls == CALLS * order.len() as i64, "{calls} calls");
        // Nothing is counted in a segment that is closed, and none is closed twice.
        let open: i64 = sqlx::query_scalar(
            "select count(*) from eco_usage_segments z
             where z.recorded_units is distinct from
                   (select coalesce(sum(c.recorded_units), 0) from eco_usage_counters c
                    where (c.eco_id, c.period_start, c.segment) = (z.eco_id, z.period_start, z.segment))",
        )
        .fetch_one(&mut *db)
        .await?;
        ensure!(open == 0, "{open} segments were counted in after they were closed");
        Ok(())
    }
}

/// All orders that begin with one event.
async fn orders_that_begin_with(first: usize) -> Result<()> {
    let database = TestDb::new().await?;
    let now = Utc::now().trunc_subsecs(0);
    let anchor = now - TimeDelta::days(3);
    seed::account(&database.pool, ACCOUNT, Plan::Free, anchor).await?;
    sqlx::query(
        "insert into eco_stripe_prices values ('price_pro', 'pro'), ('price_enterprise', 'enterprise')",
    )
    .execute(&database.pool)
    .await?;
    let memory = Arc::new(MemorySubscriptions::default());
    let pace = Arc::new(Pace::new(NonZeroU32::MAX));
    let life = Life { context: Context::new(memory.clone(), pace, 4), memory, now, anchor };
    // As a superuser, who may count calls as well.
    let mut connection = db::acquire(&database.pool).await?;
    let mut transaction = connection.begin().await?;
    ensure!(life.walk(&mut transaction, Vec::new(), Some(first)).await? == 720);
    Ok(())
}

#[tokio::test]
async fn every_order_that_begins_with_the_creation() -> Result<()> {
    orders_that_begin_with(0).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_checkout() -> Result<()> {
    orders_that_begin_with(1).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_failed_payment() -> Result<()> {
    orders_that_begin_with(2).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_past_due() -> Result<()> {
    orders_that_begin_with(3).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_payment() -> Result<()> {
    orders_that_begin_with(4).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_change_of_plan() -> Result<()> {
    orders_that_begin_with(5).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_end() -> Result<()> {
    orders_that_begin_with(6).await
}
