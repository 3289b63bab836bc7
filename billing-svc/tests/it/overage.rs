//! What an account owes, and the summary.

use anyhow::{Context, Result};
use chrono::{DateTime, Months, TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_proto::billing::v1::GetOverageRequest;
use nexus_testkit::{db::TestDb, seed};
use tonic::Code;

use crate::support::{Billing, anchor, record, record_at, runner, until, user};

const NO_STRIPE: &str = "http://127.0.0.1:9/";

#[tokio::test]
async fn overage_is_exact_at_once() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    for (eco_id, plan) in [("eco_free", Plan::Free), ("eco_pro", Plan::Pro), ("eco_big", Plan::Enterprise)] {
        seed::account(&db.pool, eco_id, plan, anchor()).await?;
        assert_eq!(billing.overage(eco_id).await?.overage_count, 0);
        record(&db, eco_id, 105_007).await?;
    }
    let pro = billing.overage("eco_pro").await?;
    assert_eq!((pro.overage_count, pro.overage_micros, pro.due_micros), (5_007, 5_007_000, 5_000_000));
    assert_eq!((pro.billed_micros, pro.invoiced, pro.included_count), (0, false, 100_000));
    assert_eq!(pro.currency_code, "USD");
    for (eco_id, included) in [("eco_free", 1_000), ("eco_big", -1)] {
        let none = billing.overage(eco_id).await?;
        assert_eq!((none.overage_count, none.overage_micros, none.invoiced), (0, 0, false), "{eco_id}");
        assert_eq!(none.included_count, included);
    }
    let own =
        billing.client.clone().get_overage(user("eco_pro")?.request(GetOverageRequest::default())).await?;
    assert_eq!(own.into_inner(), pro);
    let unknown = GetOverageRequest { eco_id: "eco_nobody".into() };
    let missing =
        billing.client.clone().get_overage(runner()?.request(unknown)).await.err().context("an error")?;
    assert_eq!(missing.code(), Code::NotFound);
    billing.stop().await
}

#[tokio::test]
async fn a_lapsed_subscription_accrues_no_new_overage_and_keeps_the_old() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    record(&db, "eco_a", 101_000).await?;
    until(&db, "select exists (select from eco_usage_records where overage_units = 1000)").await?;
    sqlx::query("update eco_subscriptions set status = 'unpaid'").execute(&db.pool).await?;
    record(&db, "eco_a", 500).await?;
    until(&db, "select exists (select from eco_usage_records where api_calls = 101500)").await?;
    assert_eq!(billing.overage("eco_a").await?.overage_count, 1_000);
    billing.stop().await
}

/// What becomes of a subscription later changes nothing about a period that has ended.
#[tokio::test]
async fn a_period_that_has_ended_accrues_by_what_was_granted_at_its_end() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    let first = Utc::now() - TimeDelta::hours(1) - Months::new(48);
    for eco_id in ["eco_lapsed", "eco_paid"] {
        seed::account(&db.pool, eco_id, Plan::Pro, first).await?;
    }
    // One was unpaid when the period ended, and is paid again; the other the other way round.
    sqlx::raw_sql(
        "update eco_plan_grants set changed_time = now() - interval '70 days';
         insert into eco_plan_grants (eco_id, changed_time, granted)
         values ('eco_lapsed', now() - interval '61 minutes', false), ('eco_lapsed', now() - interval '30 minutes', true);
         update eco_subscriptions set status = 'unpaid' where eco_id = 'eco_paid';",
    )
    .execute(&db.pool)
    .await?;
    let before =
        "select nexus_period_start(anchor_time, now() - interval '2 hours') from eco_subscriptions limit 1";
    let before: DateTime<Utc> = sqlx::query_scalar(before).fetch_one(&db.pool).await?;
    for eco_id in ["eco_lapsed", "eco_paid"] {
        record_at(&db, eco_id, before, 100_200).await?;
        // And in the current period, by what is granted now.
        record(&db, eco_id, 100_030).await?;
    }
    let counted = "select count(*) = 4 from eco_usage_records where api_calls > 0";
    until(&db, counted).await?;
    let overage = "select eco_id, overage_units from eco_usage_records order by eco_id, period_start";
    let overage: Vec<(String, i64)> = sqlx::query_as(overage).fetch_all(&db.pool).await?;
    let expected = [("eco_lapsed", 0), ("eco_lapsed", 30), ("eco_paid", 200), ("eco_paid", 0)];
    assert_eq!(overage, expected.map(|(eco_id, units)| (eco_id.to_owned(), units)));
    billing.stop().await
}

#[tokio::test]
async fn the_summary_follows_the_counters_with_several_replicas_at_work() -> Result<()> {
    let db = TestDb::new().await?;
    let replicas = [Billing::start(&db, NO_STRIPE).await?, Billing::start(&db, NO_STRIPE).await?];
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    seed::account(&db.pool, "eco_b", Plan::Free, anchor()).await?;
    record(&db, "eco_a", 100_010).await?;
    record(&db, "eco_b", 3).await?;
    until(&db, "select count(*) = 2 from eco_usage_records").await?;
    let rows: Vec<(String, i64, i64, i64, String)> = sqlx::query_as(
        "select eco_id, api_calls, overage_units, overage_micros, plan from eco_usage_records order by eco_id",
    )
    .fetch_all(&db.pool)
    .await?;
    assert_eq!(
        rows,
        [("eco_a".into(), 100_010, 10, 10_000, "pro".into()), ("eco_b".into(), 3, 0, 0, "free".into())]
    );
    record(&db, "eco_a", 5).await?;
    until(&db, "select exists (select from eco_usage_records where api_calls = 100015)").await?;
    until(&db, "select not exists (select from eco_usage_changes)").await?;
    for replica in replicas {
        replica.stop().await?;
    }
    Ok(())
}
