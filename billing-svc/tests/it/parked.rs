//! Periods that take no charge until something is mended: nobody else waits for them, and they are told of as long as they
//! are parked.

use anyhow::{Result, ensure};
use nexus_kit::status::reason;
use nexus_proto::billing::v1::{AdjustUsageRequest, GetOverageRequest};
use nexus_testkit::{db::TestDb, settings};
use serde_json::json;

use crate::{
    reconcile::sql,
    support::{Billing, Sim, record, runner, user},
};

/// Which accounts a reconciliation finds to be past their settlement.
async fn overdue(billing: &Billing) -> Result<Vec<String>> {
    let found = billing.differences(false).await?;
    Ok(found.into_iter().filter(|(_, kind)| kind == "SETTLEMENT_OVERDUE").map(|(eco_id, _)| eco_id).collect())
}

async fn is_shown(billing: &Billing, line: &str) -> Result<()> {
    let metrics = billing.metrics().await?;
    ensure!(metrics.lines().any(|known| known == line), "{line}: {metrics}");
    Ok(())
}

#[tokio::test]
async fn what_was_refused_once_is_told_of_for_as_long_as_it_is_owed() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    let customer = sim.pro(&db, "eco_a").await?;
    sim.pro(&db, "eco_b").await?;
    sim.admin(&format!("/customers/{customer}"), json!({ "declined": true })).await?;
    for eco_id in ["eco_a", "eco_b"] {
        record(&db, eco_id, 100_100).await?;
    }
    assert_eq!(billing.run_all().await?.errors.len(), 1);
    record(&db, "eco_a", 500).await?;
    assert_eq!(billing.run_all().await?.errors.len(), 0, "it was told");
    ensure!(overdue(&billing).await?.is_empty());
    is_shown(&billing, "nexus_billing_parked_periods{reason=\"CARD_DECLINED\"} 1").await?;
    is_shown(&billing, "nexus_billing_parked_accounts{reason=\"CARD_DECLINED\"} 1").await?;

    let ended = |ago: &str| format!("update eco_usage_records set period_end = now() - interval '{ago}'");
    sql(&db, &ended("49 hours")).await?;
    billing.run_all().await?;
    ensure!(overdue(&billing).await?.is_empty(), "the daily run has yet to see it");
    sql(&db, &ended("51 hours")).await?;
    assert_eq!(overdue(&billing).await?, ["eco_a"]);
    is_shown(&billing, "nexus_billing_drift_count{kind=\"SETTLEMENT_OVERDUE\"} 1").await?;

    sim.admin(&format!("/customers/{customer}"), json!({ "declined": false })).await?;
    sql(&db, "update eco_usage_records set parked_reason = null, parked_time = null where eco_id = 'eco_a'")
        .await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    ensure!(overdue(&billing).await?.is_empty());
    is_shown(&billing, "nexus_billing_parked_periods{reason=\"CARD_DECLINED\"} 0").await?;
    billing.stop().await
}

/// A hundred dollars a call, and as many calls as are counted at once, 93,000 times.
#[tokio::test]
async fn an_account_that_owes_more_than_can_be_counted_is_parked_and_nobody_else_waits() -> Result<()> {
    const CALLS: i64 = 93_000_000_000;
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    for eco_id in ["eco_a", "eco_b"] {
        sim.pro(&db, eco_id).await?;
    }
    sql(
        &db,
        "update eco_plan_prices set overage_micros = 100000000, overage_per_units = 1 where plan = 'pro'",
    )
    .await?;
    record(&db, "eco_a", CALLS).await?;
    record(&db, "eco_b", 100_002).await?;
    let run = billing.run_all().await?;
    let errors: Vec<_> = run.errors.iter().map(|e| (e.eco_id.as_str(), e.reason.as_str())).collect();
    assert_eq!((run.charged_count, errors), (1, vec![("eco_a", "AMOUNT_OUT_OF_RANGE")]));
    assert_eq!(sim.amounts().await?, [20_000]);
    let again = billing.run_all().await?;
    assert_eq!((again.charged_count, again.errors.len()), (0, 0));
    let asked = GetOverageRequest { eco_id: "eco_a".to_owned() };
    let refused = billing.client.clone().get_overage(runner()?.request(asked)).await;
    assert_eq!(refused.err().map(|status| reason(&status)).as_deref(), Some("AMOUNT_OUT_OF_RANGE"));
    ensure!(!billing.differences(false).await?.iter().any(|(_, kind)| kind != "EVENTS_COUNTERS_DIFFER"));
    is_shown(&billing, "nexus_billing_parked_periods{reason=\"AMOUNT_OUT_OF_RANGE\"} 1").await?;

    // Somebody corrects it.
    let adjust = AdjustUsageRequest {
        eco_id: "eco_a".to_owned(),
        delta_count: 100_001 - CALLS,
        reason: "a faulty client".to_owned(),
        request_id: "00000000-0000-4000-8000-000000000001".to_owned(),
        ..Default::default()
    };
    billing.client.clone().adjust_usage(user(settings::ADMIN)?.request(adjust)).await?;
    assert_eq!(billing.run_all().await?.charged_count, 1);
    let mut amounts = sim.amounts().await?;
    amounts.sort_unstable();
    assert_eq!(amounts, [10_000, 20_000]);
    billing.stop().await
}
