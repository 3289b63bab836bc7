//! A plan that is not granted for a while: what is counted then accrues no overage, whatever is corrected later.

use anyhow::{Context, Result, ensure};
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::{AdjustUsageRequest, ExplainChargeRequest, ListChargesRequest};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::json;

use crate::support::{Billing, NONE_WAITS, Sim, anchor, event, record, runner, until, user};

/// An account on pro that has counted 90,000 calls, then 5,000 while its subscription was unpaid, and is paid for again.
struct World {
    db: TestDb,
    sim: Sim,
    billing: Billing,
}

impl World {
    async fn new() -> Result<Self> {
        let (db, sim) = (TestDb::new().await?, Sim::start().await?);
        let billing = Billing::start(&db, &sim.base).await?;
        seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
        let (customer, price) = (sim.customer().await?, sim.price("pro").await?);
        let form = format!("customer={customer}&items[0][price]={price}&metadata[eco_id]=eco_a");
        let subscription = sim.create("subscriptions", &form).await?;
        let world = Self { db, sim, billing };
        world.told("evt_1", &subscription).await?;
        record(&world.db, "eco_a", 90_000).await?;
        for (number, status, units) in [(2, "unpaid", 5_000), (3, "active", 0)] {
            let path = format!("/subscriptions/{subscription}");
            world.sim.admin(&path, json!({ "status": status })).await?;
            world.told(&format!("evt_{number}"), &subscription).await?;
            if units > 0 {
                record(&world.db, "eco_a", units).await?;
            }
        }
        Ok(world)
    }

    async fn told(&self, id: &str, subscription: &str) -> Result<()> {
        self.billing
            .event(&event(id, "customer.subscription.updated", json!({ "id": subscription })))
            .await?;
        until(&self.db, NONE_WAITS).await
    }

    async fn adjust(&self, segment: i32, delta: i64) -> Result<()> {
        let request = AdjustUsageRequest {
            eco_id: "eco_a".to_owned(),
            delta_count: delta,
            reason: "counted at another place".to_owned(),
            request_id: uuid::Uuid::now_v7().to_string(),
            segment: Some(segment),
            ..Default::default()
        };
        self.billing.client.clone().adjust_usage(user(settings::ADMIN)?.request(request)).await?;
        Ok(())
    }

    async fn closed(&self) -> Result<Vec<(i64, i64, Option<bool>)>> {
        let statement = "select g.recorded_units, g.overage_units, g.granted
            from eco_usage_segments g
            where g.period_start = (select max(period_start) from eco_usage_records) order by g.segment";
        Ok(sqlx::query_as(statement).fetch_all(&self.db.pool).await?)
    }

    /// Overage units of the period, by the summary and as billing reckons.
    async fn overage(&self) -> Result<i64> {
        let summary: i64 = sqlx::query_scalar(
            "select overage_units from eco_usage_records order by period_start desc limit 1",
        )
        .fetch_one(&self.db.pool)
        .await?;
        let reckoned = self.billing.overage("eco_a").await?.overage_count;
        ensure!(summary == reckoned, "{summary} {reckoned}");
        Ok(reckoned)
    }
}

#[tokio::test]
async fn a_correction_bills_no_calls_of_a_segment_whose_plan_was_not_granted() -> Result<()> {
    let world = World::new().await?;
    assert_eq!(world.closed().await?, [(90_000, 0, Some(true)), (5_000, 0, Some(false))]);
    world.adjust(1, 20_000).await?;
    assert_eq!((world.closed().await?[1], world.overage().await?), ((25_000, 0, Some(false)), 0));
    world.adjust(1, -20_000).await?;
    world.adjust(0, 20_000).await?;
    assert_eq!(world.closed().await?, [(110_000, 10_000, Some(true)), (5_000, 0, Some(false))]);
    assert_eq!(world.overage().await?, 10_000);
    assert_eq!(world.billing.run_all().await?.charged_count, 1);
    assert_eq!(world.sim.amounts().await?, [1_000]);

    let request = ListChargesRequest { eco_id: "eco_a".to_owned(), ..Default::default() };
    let charges = world.billing.client.clone().list_charges(runner()?.request(request)).await?.into_inner();
    let charge_id = charges.charges.first().context("a charge")?.charge_id.clone();
    let request = ExplainChargeRequest { charge_id };
    let told = world.billing.client.clone().explain_charge(runner()?.request(request)).await?.into_inner();
    let words = "pro (version 1): 5,000 calls, while the plan was not granted: 0 at";
    ensure!(told.explanation.contains(words), "{}", told.explanation);
    world.billing.stop().await
}

/// Closed by a version that did not keep it.
#[tokio::test]
async fn where_it_was_not_kept_the_counts_tell_as_far_as_they_do() -> Result<()> {
    let world = World::new().await?;
    sqlx::query("update eco_usage_segments set recorded_units = 25000, granted = null where segment = 1")
        .execute(&world.db.pool)
        .await?;
    world.adjust(0, 20_000).await?;
    assert_eq!(world.closed().await?, [(110_000, 10_000, Some(true)), (25_000, 0, Some(false))]);
    world.billing.stop().await
}
