//! Stripe's times are whole seconds: a subscription may have ended before the moment when its beginning was heard of.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_billing::{
    app::{
        refresh,
        stripe_events::{self, apply::apply},
    },
    domain::stripe_objects::{Price, Subscription},
    payments::pace::Pace,
    store::stripe_events::Job,
};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};

use crate::{
    memory_subscriptions::MemorySubscriptions,
    support::{anchor, record},
};

#[tokio::test]
async fn a_period_keeps_its_plan_where_it_ended_before_its_beginning_was_heard_of() -> Result<()> {
    let db = TestDb::new().await?;
    let pool = db::pool(&db.args(), Role::Billing)?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let memory = Arc::new(MemorySubscriptions::default());
    let pace = Arc::new(Pace::new(NonZeroU32::new(10_000).context("not zero")?));
    let context = stripe_events::Context::new(memory.clone(), pace, 4);
    let created = Utc::now() - TimeDelta::seconds(5);
    let begun = Subscription {
        id: "sub_1".to_owned(),
        customer: "cus_1".to_owned(),
        status: SubscriptionStatus::Active,
        prices: vec![Price {
            id: "price_1".to_owned(),
            lookup_key: Some("pro".to_owned()),
            item_id: "si_1".to_owned(),
        }],
        anchor: created,
        created,
        ended: None,
        cancel_at: None,
        ends_by_date: false,
        eco_id: Some("eco_a".to_owned()),
    };
    let ended = Subscription {
        status: SubscriptionStatus::Canceled,
        ended: Some(created + TimeDelta::seconds(2)),
        ..begun.clone()
    };
    let job = Job {
        event_id: "evt_1".to_owned(),
        kind: "customer.subscription.updated".to_owned(),
        object_id: "sub_1".to_owned(),
        subscription_id: Some("sub_1".to_owned()),
        attempts: 0,
    };
    for (subscription, calls) in [(begun, 100_500), (ended, 7)] {
        memory.state().subscriptions.insert("sub_1".to_owned(), subscription);
        let mut transaction = db::begin(&pool).await?;
        apply(&mut transaction, &context, &job).await?;
        transaction.commit().await?;
        record(&db, "eco_a", calls).await?;
    }
    refresh::drain(&pool).await?;
    let periods: Vec<(String, i64, i64)> =
        sqlx::query_as("select plan, api_calls, overage_units from eco_usage_records order by period_start")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(periods, [("free".to_owned(), 7, 0), ("pro".to_owned(), 100_500, 500)]);
    Ok(())
}
