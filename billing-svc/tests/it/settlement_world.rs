//! An account whose subscription at Stripe ends, and what clears that.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_billing::{
    app::{
        clear_ended::{self, Standing},
        process_overage::{ChargeContext, Engine, charge_account},
        refresh,
    },
    domain::period::PeriodKey,
    payments::{Payments, pace::Pace, stripe::Stripe},
};
use nexus_core::plan::Plan;
use nexus_kit::db::{self, Role};
use nexus_testkit::{db::TestDb, seed};
use tokio_util::sync::CancellationToken;

use crate::{
    memory::{Fault, Memory},
    support::{Billing, Sim, anchor, config, record},
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

pub(crate) async fn periods(db: &TestDb) -> Result<Vec<PeriodKey>> {
    let rows: Vec<(String, DateTime<Utc>)> =
        sqlx::query_as("select eco_id, period_start from eco_usage_records").fetch_all(&db.pool).await?;
    Ok(rows.into_iter().map(|(eco_id, start)| PeriodKey { eco_id, start }).collect())
}

/// `eco_a` on pro, whose subscription is at a Stripe in memory.
pub(crate) struct Subscribed {
    pub(crate) db: TestDb,
    pub(crate) memory: Arc<Memory>,
    pub(crate) context: ChargeContext,
}

impl Subscribed {
    pub(crate) async fn new() -> Result<Self> {
        let (db, memory) = (TestDb::new().await?, Arc::new(Memory::new()));
        memory.add_customer("cus_1");
        seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
        seed::stripe_ids(&db.pool, "eco_a", "cus_1", Some("sub_1")).await?;
        let context = charging(&db, memory.clone())?;
        Ok(Self { db, memory, context })
    }

    /// It owes 5 dollars, of which nothing is charged, when the subscription ends.
    pub(crate) async fn ended() -> Result<Self> {
        let subscribed = Self::new().await?;
        subscribed.record(105_000).await?;
        end_subscription(&subscribed.db, 5_000).await?;
        Ok(subscribed)
    }

    /// Counts calls.
    pub(crate) async fn record(&self, units: i64) -> Result<()> {
        record(&self.db, "eco_a", units).await?;
        Ok(refresh::drain(&self.context.pool).await?)
    }

    /// Charges what it owes.
    pub(crate) async fn charge(&self) -> Result<()> {
        let charged = charge_account(&self.context, &periods(&self.db).await?).await;
        ensure!(charged.charged && charged.error.is_none(), "{charged:?}");
        Ok(())
    }

    /// Works, and is killed once the request after so many that change something is done, whose answer never comes.
    pub(crate) async fn killed<T: std::fmt::Debug>(
        &self,
        after: usize,
        work: impl Future<Output = T>,
    ) -> Result<()> {
        let faults = std::iter::repeat_n(Fault::None, after).chain([Fault::NoAnswer]);
        faults.for_each(|fault| self.memory.fail_next(fault));
        let unanswered = self.memory.unanswered() + 1;
        tokio::select! {
            done = work => anyhow::bail!("it ended after {after} requests: {done:?}"),
            () = self.memory.until_unanswered(unanswered) => Ok(()),
        }
    }

    /// There is one charge, and it is on one invoice, which is final.
    pub(crate) fn is_collected(&self) -> Result<()> {
        let ids: Vec<String> = self.memory.items().into_iter().map(|(id, _)| id).collect();
        let finalised = self.memory.finalised();
        ensure!(ids.len() == 1 && finalised == [ids.clone()], "{ids:?} {finalised:?}");
        Ok(())
    }
}

/// An account that owes a dollar, which is pending, when its subscription ends.
pub(crate) async fn owing_a_dollar() -> Result<(TestDb, Sim)> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let customer = sim.customer().await?;
    let subscription = sim.subscription(&customer).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::stripe_ids(&db.pool, "eco_a", &customer, Some(&subscription)).await?;
    let billing = Billing::start(&db, &sim.base).await?;
    record(&db, "eco_a", 101_000).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    billing.stop().await?;
    sim.cancel(&subscription).await?;
    end_subscription(&db, 1_000).await?;
    Ok((db, sim))
}
