//! Items that come after nobody expects them: they are rechecked, too, and that between runs.

use anyhow::Result;
use nexus_testkit::db::TestDb;
use serde_json::json;

use crate::{
    recheck_world::World,
    support::{Billing, Sim, begin, config, record, until},
};

/// An invoice may take both items before the next run.
#[tokio::test]
async fn between_runs_a_late_item_is_deleted_by_a_worker() -> Result<()> {
    let world = World::new().await?;
    world.late().await?;
    let mut config = config(&world.db, &world.sim.base);
    config.overage_recheck_every = std::time::Duration::from_millis(50);
    let other = Billing::start_with(config).await?;
    world.ten_minutes_later().await?;
    until(&world.db, "select not exists (select from eco_overage_charges where recheck_time is not null)")
        .await?;
    assert_eq!(world.deletions().await?, 1);
    world.agrees(10).await?;
    other.stop().await
}

/// A process that stood still while its charge was replaced and rechecked goes on, and has made an item.
#[tokio::test]
async fn an_item_that_comes_after_the_recheck_is_rechecked_again() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let slow = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    sim.fault(json!({ "hold": true })).await?;
    let call = begin(&slow);
    sim.read("/held").await?;
    let world = World { billing: Billing::start(&db, &sim.base).await?, db, sim, customer };
    // It loses the lease, and does not know that yet.
    world.end_lease().await?;
    world.sql("update eco_overage_charges set created_time = now() - interval '24 hours'").await?;
    assert_eq!(world.billing.run_all().await?.charged_count, 1);
    world.ten_minutes_later().await?;
    world.billing.run_all().await?;
    world.has_recheck(false).await?;

    world.late().await?;
    until(&world.db, "select exists (select from eco_overage_charges where recheck_time <= now())").await?;
    world.billing.run_all().await?;
    world.agrees(10).await?;
    // Whatever it was told.
    let _answer = call.await?;
    slow.stop().await
}

/// An account whose charge hangs at Stripe; its server was killed, and the next one has another key of Stripe's, by which
/// Stripe knows none of our keys.
async fn rolled() -> Result<World> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let doomed = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    sim.fault(json!({ "hold": true })).await?;
    let mut config = config(&db, &sim.base);
    config.stripe.stripe_secret_key = "sk_test_rolled".into();
    let mut world = World { billing: Billing::start_with(config).await?, db, sim, customer };
    world.kill_held(doomed).await?;
    Ok(world)
}

impl World {
    async fn decline(&self, declined: bool) -> Result<()> {
        let path = format!("/customers/{}", self.customer);
        self.sim.admin(&path, json!({ "declined": declined })).await?;
        Ok(())
    }
}

#[tokio::test]
async fn what_may_have_been_sent_with_another_api_key_is_looked_for_before_it_is_sent_again() -> Result<()> {
    for declined in [false, true] {
        let world = rolled().await?;
        world.release().await?;
        world.decline(declined).await?;
        let run = world.billing.run_all().await?;
        assert_eq!((run.charged_count, run.errors.len()), (1, 0), "{:?}", run.errors);
        world.agrees(10).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_refused_and_comes_late_all_the_same_is_taken_back() -> Result<()> {
    let world = rolled().await?;
    world.decline(true).await?;
    let run = world.billing.run_all().await?;
    assert_eq!((run.charged_count, run.errors[0].reason.as_str()), (0, "CARD_DECLINED"));
    world.decline(false).await?;
    world.release().await?;
    assert_eq!(world.sim.amounts().await?, [10]);
    world.ten_minutes_later().await?;
    world.billing.run_all().await?;
    world.has_recheck(false).await?;
    world.agrees(0).await
}

#[tokio::test]
async fn what_comes_late_beside_an_item_of_another_api_key_is_taken_back() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let slow = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_100).await?;
    sim.fault(json!({ "hold": true })).await?;
    let call = begin(&slow);
    sim.read("/held").await?;
    let mut config = config(&db, &sim.base);
    config.stripe.stripe_secret_key = "sk_test_rolled".into();
    let world = World { billing: Billing::start_with(config).await?, db, sim, customer };
    world.end_lease().await?;
    assert_eq!(world.billing.run_all().await?.charged_count, 1);
    world.late().await?;
    until(&world.db, "select exists (select from eco_overage_charges where recheck_time <= now())").await?;
    world.billing.run_all().await?;
    world.agrees(10).await?;
    let _answer = call.await?;
    slow.stop().await
}
