//! A charge that was replaced, and whose first request may still take effect.

use anyhow::{Context, Result, ensure};
use nexus_testkit::db::TestDb;
use serde_json::json;

use crate::support::{Billing, Sim, begin, record, until};

/// A charge of 10 cents whose first request hangs at Stripe while its server is killed. A day later the next
/// server's list does not show it, so that it is sent again with a new key.
pub(crate) struct World {
    pub(crate) db: TestDb,
    pub(crate) sim: Sim,
    pub(crate) billing: Billing,
    pub(crate) customer: String,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let doomed = Billing::start(&db, &sim.base).await?;
        let customer = sim.pro(&db, "eco_a").await?;
        record(&db, "eco_a", 100_100).await?;
        sim.fault(json!({ "hold": true })).await?;
        let billing = Billing::start(&db, &sim.base).await?;
        let mut world = Self { db, sim, billing, customer };
        world.kill_held(doomed).await?;
        world.sql("update eco_overage_charges set created_time = now() - interval '24 hours'").await?;
        let run = world.billing.run_all().await?;
        assert_eq!((run.charged_count, run.errors.len()), (1, 0));
        assert_eq!(world.sim.amounts().await?, [10]);
        world.has_recheck(true).await?;
        Ok(world)
    }

    /// Kills a server in a run, once its request is held at Stripe.
    pub(crate) async fn kill_held(&mut self, server: Billing) -> Result<()> {
        let call = begin(&server);
        self.sim.read("/held").await?;
        server.kill().await?;
        ensure!(call.await?.is_err(), "a killed server cannot have answered");
        until(&self.db, NO_LEASE).await
    }

    /// The run at work loses its lease, and does not know that yet.
    pub(crate) async fn end_lease(&self) -> Result<()> {
        self.sql(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = 2 and objsubid = 2
             and database = (select oid from pg_database where datname = current_database())",
        )
        .await?;
        until(&self.db, NO_LEASE).await
    }

    /// The request that is held takes effect.
    pub(crate) async fn release(&self) -> Result<()> {
        self.sim.admin("/release", json!({})).await?;
        self.sim.read("/idle").await?;
        Ok(())
    }

    /// The first request makes a second item after all.
    pub(crate) async fn late(&self) -> Result<()> {
        self.release().await?;
        assert_eq!(self.sim.amounts().await?, [10, 10]);
        Ok(())
    }

    pub(crate) async fn sql(&self, statement: &'static str) -> Result<()> {
        sqlx::query(statement).execute(&self.db.pool).await?;
        Ok(())
    }

    pub(crate) async fn ten_minutes_later(&self) -> Result<()> {
        self.sql("update eco_overage_charges set recheck_time = recheck_time - interval '10 minutes'").await
    }

    pub(crate) async fn has_recheck(&self, expected: bool) -> Result<()> {
        let has: bool = sqlx::query_scalar(
            "select exists (select from eco_overage_charges where recheck_time is not null)",
        )
        .fetch_one(&self.db.pool)
        .await?;
        assert_eq!(has, expected, "a recheck is to come");
        Ok(())
    }

    /// The ledger has the same items as Stripe, with the same amounts, and they sum up to what is owed.
    pub(crate) async fn agrees(&self, cents: i64) -> Result<()> {
        let mut ledger: Vec<(String, i64)> = sqlx::query_as(
            "select stripe_invoice_item_id, amount_minor from eco_overage_charges where status = 'succeeded'",
        )
        .fetch_all(&self.db.pool)
        .await?;
        let mut stripe = Vec::new();
        for item in self.sim.items().await? {
            let id = item["id"].as_str().context("an id")?.to_owned();
            stripe.push((id, item["amount"].as_i64().context("an amount")?));
        }
        ledger.sort();
        stripe.sort();
        assert_eq!(ledger, stripe);
        assert_eq!(stripe.iter().map(|(_, amount)| amount).sum::<i64>(), cents);
        assert_eq!(self.billing.overage("eco_a").await?.billed_micros, cents * 10_000);
        Ok(())
    }

    pub(crate) async fn deletions(&self) -> Result<usize> {
        let log = self.sim.read("/requests?method=DELETE").await?;
        Ok(log["requests"].as_array().context("requests")?.len())
    }

    /// The item that the first request made.
    pub(crate) async fn late_item(&self) -> Result<String> {
        let ours: String = sqlx::query_scalar(
            "select stripe_invoice_item_id from eco_overage_charges where status = 'succeeded'",
        )
        .fetch_one(&self.db.pool)
        .await?;
        let items = self.sim.items().await?;
        let late = items.iter().filter_map(|item| item["id"].as_str()).find(|id| *id != ours);
        Ok(late.context("a late item")?.to_owned())
    }
}

pub(crate) const NO_LEASE: &str =
    "select not exists (select from pg_locks where locktype = 'advisory' and objid = 2 and objsubid = 2
     and database = (select oid from pg_database where datname = current_database()))";
pub(crate) const PARKED: &str =
    "update eco_usage_records set parked_reason = 'CARD_DECLINED', parked_time = now()";
pub(crate) const SETTLED: &str = "update eco_usage_records set settled_time = now()";
pub(crate) const OPEN: &str = "select";
