//! Two subscriptions of an account, one after the other, and the draft of a cycle of the first with charges on it: told by
//! their events in every order and twice, with calls and runs between. Whatever the order, in the end every charge is on
//! a finalised invoice, and their sum is what is owed.
//!
//! An event is heard at the earliest when it has happened, so that Stripe stands, at each step, at the latest event that
//! was heard. Each order has an account of its own, and each step is committed, as the server does it.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use nexus_billing::{
    app::{
        clear_ended::{self, Standing},
        process_overage::{ChargeContext, charge_account},
        refresh, settle_draft,
        stripe_events::{Context, apply::apply},
    },
    domain::{
        period::PeriodKey,
        stripe_objects::{Invoice, Price, Subscription},
    },
    payments::{Payments, Place, pace::Pace},
    store::stripe_events::Job,
};
use nexus_core::{
    money::{Currency, Micros},
    plan::{Plan, SubscriptionStatus},
};
use nexus_kit::db;
use nexus_testkit::{db::TestDb, seed};

use crate::{
    memory::Memory, memory_subscriptions::MemorySubscriptions, settlement_world::charging, support::record,
};

/// In the order in which they happen. The draft is of the first subscription, which is ended at once while it is one.
const EVENTS: [&str; 5] = [
    "customer.subscription.created",
    "invoice.created",
    "customer.subscription.deleted",
    "customer.subscription.created",
    "customer.subscription.deleted",
];
/// Calls that are counted after each event: each costs a tenth of a cent.
const CALLS: i64 = 1_013;

/// What becomes of the draft of a subscription that was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Draft {
    Stops,
    GoesOn,
}

/// One account, and Stripe as far as it is about it.
struct Life<'a> {
    db: &'a TestDb,
    charging: ChargeContext,
    memory: Arc<Memory>,
    context: Context,
    subscriptions: Arc<MemorySubscriptions>,
    draft: Draft,
    eco_id: String,
    now: DateTime<Utc>,
    happened: usize,
    invoice_id: String,
}

impl Life<'_> {
    fn customer(&self) -> String {
        self.eco_id.replace("eco", "cus")
    }

    fn id(&self, number: usize) -> String {
        self.eco_id.replace("eco", &format!("sub_{number}"))
    }

    fn subscription(&self, number: usize, created: TimeDelta, ended: Option<TimeDelta>) {
        let subscription = Subscription {
            id: self.id(number),
            customer: self.customer(),
            status: ended.map_or(SubscriptionStatus::Active, |_| SubscriptionStatus::Canceled),
            prices: vec![Price { id: "price_pro".to_owned(), lookup_key: None, item_id: "si_1".to_owned() }],
            anchor: self.now - created,
            created: self.now - created,
            cancel_at: None,
            ends_by_date: false,
            ended: ended.map(|ended| self.now - ended),
            eco_id: None,
        };
        if ended.is_some() {
            self.memory.end_subscription(&subscription.id);
        }
        self.subscriptions.state().subscriptions.insert(subscription.id.clone(), subscription);
    }

    /// The next event happens at Stripe.
    fn happen(&mut self) {
        let minutes = TimeDelta::minutes;
        match self.happened {
            0 => self.subscription(1, minutes(120), None),
            1 => {
                let goes_on = self.draft == Draft::GoesOn;
                self.invoice_id = self.memory.draft_that(&self.customer(), &self.id(1), goes_on);
                let invoice = Invoice {
                    id: self.invoice_id.clone(),
                    subscription: Some(self.id(1)),
                    is_draft: true,
                    goes_on: true,
                    is_of_cycle: true,
                    period_end: self.now,
                };
                self.subscriptions.state().invoices.insert(invoice.id.clone(), invoice);
            }
            2 => self.subscription(1, minutes(120), Some(minutes(90))),
            3 => self.subscription(2, minutes(60), None),
            _ => self.subscription(2, minutes(60), Some(minutes(5))),
        }
        self.happened += 1;
    }

    /// As the server does: the event is applied, a draft settled, what has ended is cleared as far as it can be.
    async fn hear(&self, event: usize) -> Result<()> {
        let subscription = self.id(if event < 3 { 1 } else { 2 });
        let kind = EVENTS[event];
        let object_id =
            if kind == "invoice.created" { self.invoice_id.clone() } else { subscription.clone() };
        let job = Job {
            event_id: format!("evt_{event}"),
            kind: kind.to_owned(),
            object_id,
            subscription_id: Some(subscription),
            attempts: 0,
        };
        let mut transaction = db::begin(&self.charging.pool).await?;
        let applied = apply(&mut transaction, &self.context, &job).await?;
        transaction.commit().await?;
        if let Some(draft) = applied.draft {
            let settled = settle_draft::run(&self.charging, &draft).await?;
            ensure!(settled.error.is_none(), "{settled:?}");
        }
        self.clear().await.map(drop)
    }

    async fn clear(&self) -> Result<Standing> {
        let (standing, result) = clear_ended::run(&self.charging, &self.eco_id).await?;
        ensure!(standing != Standing::Failed && result.error.is_none(), "{standing:?} {result:?}");
        Ok(standing)
    }

    /// Calls, and a daily run.
    async fn go_on(&self) -> Result<()> {
        record(self.db, &self.eco_id, CALLS).await?;
        self.charge().await
    }

    async fn charge(&self) -> Result<()> {
        refresh::drain(&self.charging.pool).await?;
        let periods: Vec<DateTime<Utc>> = sqlx::query_scalar(
            "select period_start from eco_usage_records where eco_id = $1 and settled_time is null",
        )
        .bind(&self.eco_id)
        .fetch_all(&self.db.pool)
        .await?;
        let key = |start| PeriodKey { eco_id: self.eco_id.clone(), start };
        let periods: Vec<PeriodKey> = periods.into_iter().map(key).collect();
        let charged = charge_account(&self.charging, &periods).await;
        ensure!(charged.error.is_none(), "{charged:?}");
        Ok(())
    }

    async fn live(&mut self, order: &[usize]) -> Result<()> {
        seed::account(&self.db.pool, &self.eco_id, Plan::Pro, self.now - TimeDelta::days(3)).await?;
        seed::stripe_ids(&self.db.pool, &self.eco_id, &self.customer(), None).await?;
        self.memory.add_customer(&self.customer());
        record(self.db, &self.eco_id, 100_000).await?;
        self.go_on().await?;
        for event in order {
            while self.happened <= *event {
                self.happen();
            }
            self.hear(*event).await.with_context(|| format!("hearing {event}"))?;
            // Once more, before the next.
            self.go_on().await?;
            self.hear(*event).await.with_context(|| format!("hearing {event} again"))?;
        }
        if self.draft == Draft::GoesOn {
            self.memory.finalize_invoice(&self.invoice_id, &self.invoice_id).await;
        }
        // The last periods end, too.
        sqlx::query("update eco_usage_records set settle_time = now() where eco_id = $1")
            .bind(&self.eco_id)
            .execute(&self.db.pool)
            .await?;
        self.charge().await?;
        ensure!(self.clear().await? == Standing::Clear, "it is not cleared");
        self.check().await
    }

    async fn check(&self) -> Result<()> {
        let places = self.memory.places(&self.customer(), &self.charging.pace).await;
        let places = places.map_err(|doubt| anyhow::anyhow!(doubt.message))?;
        let open: Vec<_> = places.iter().filter(|(_, place)| **place != Place::Final).collect();
        ensure!(open.is_empty(), "on no finalised invoice: {open:?}");
        let items = self.memory.items();
        let own = items.iter().filter(|(id, _)| places.contains_key(id));
        let invoiced: i64 = own.map(|(_, item)| item.amount_minor).sum();
        let exact: Vec<i64> =
            sqlx::query_scalar("select overage_micros from eco_usage_records where eco_id = $1")
                .bind(&self.eco_id)
                .fetch_all(&self.db.pool)
                .await?;
        let unit = Currency::USD.minor_unit();
        let mut due = 0;
        for exact in exact {
            due += unit.to_minor(unit.round_half_up(Micros(exact)).context("in range")?);
        }
        ensure!(invoiced == due && due > 0, "{invoiced} cents are invoiced, {due} owed");
        let left: (i64, i64) = sqlx::query_as(
            "select (select count(*) from eco_overage_charges where eco_id = $1 and status = 'succeeded' and invoiced_time is null),
                    (select count(*) from eco_ended_subscriptions where eco_id = $1 and cleared_time is null)",
        )
        .bind(&self.eco_id)
        .fetch_one(&self.db.pool)
        .await?;
        ensure!(left == (0, 0), "{left:?}");
        Ok(())
    }
}

/// All orders of what is left after some.
fn orders(heard: &[usize]) -> Vec<Vec<usize>> {
    if heard.len() == EVENTS.len() {
        return vec![heard.to_vec()];
    }
    let left = (0..EVENTS.len()).filter(|event| !heard.contains(event));
    left.flat_map(|next| orders(&[heard, &[next]].concat())).collect()
}

async fn orders_that_begin_with(first: usize) -> Result<()> {
    let database = TestDb::new().await?;
    sqlx::query("insert into eco_stripe_prices values ('price_pro', 'pro')").execute(&database.pool).await?;
    let (memory, subscriptions) = (Arc::new(Memory::new()), Arc::new(MemorySubscriptions::default()));
    let charging = charging(&database, memory.clone())?;
    let orders = orders(&[first]);
    assert_eq!(orders.len(), 24);
    for draft in [Draft::Stops, Draft::GoesOn] {
        for (number, order) in orders.iter().enumerate() {
            let pace = Arc::new(Pace::new(NonZeroU32::MAX));
            let mut life = Life {
                db: &database,
                charging: charging.clone(),
                memory: memory.clone(),
                context: Context::new(subscriptions.clone(), pace, 4),
                subscriptions: subscriptions.clone(),
                draft,
                eco_id: format!("eco_{draft:?}_{number}"),
                now: Utc::now().trunc_subsecs(0),
                happened: 0,
                invoice_id: String::new(),
            };
            life.live(order).await.with_context(|| format!("in the order {order:?}, where it {draft:?}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_order_that_begins_with_the_first_subscription() -> Result<()> {
    orders_that_begin_with(0).await
}

#[tokio::test]
async fn every_order_that_begins_with_its_draft() -> Result<()> {
    orders_that_begin_with(1).await
}

#[tokio::test]
async fn every_order_that_begins_with_its_end() -> Result<()> {
    orders_that_begin_with(2).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_second_subscription() -> Result<()> {
    orders_that_begin_with(3).await
}

#[tokio::test]
async fn every_order_that_begins_with_the_end_of_the_second() -> Result<()> {
    orders_that_begin_with(4).await
}
