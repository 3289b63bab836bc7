//! Usage thresholds: each told once per account, period, percentage and limit.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_proto::{billing::v1::*, common::v1};
use nexus_testkit::{db::TestDb, seed};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    receiver::{Answer, Receiver},
    support::{Billing, anchor, fields, manager, record, record_at, until, user},
    webhook_support::{ALL_DONE, ALL_WAIT, admin, execute, settings, time_passes},
};

struct World {
    db: TestDb,
    billing: Billing,
    receiver: Receiver,
    secret: String,
}

impl World {
    async fn with(plan: Plan) -> Result<Self> {
        let db = TestDb::new().await?;
        seed::account(&db.pool, "eco_a", plan, anchor()).await?;
        let billing = Billing::start_with(settings(&db)).await?;
        let receiver = Receiver::start().await?;
        let secret = billing.endpoint("eco_a", &receiver.url).await?.secret;
        Ok(Self { db, billing, receiver, secret })
    }

    /// Records calls; what is told thereupon: percentage, calls and limit of each.
    async fn told(&mut self, calls: i64) -> Result<Vec<(i64, i64, i64)>> {
        record(&self.db, "eco_a", calls).await?;
        self.heard().await
    }

    async fn heard(&mut self) -> Result<Vec<(i64, i64, i64)>> {
        until(&self.db, ALL_DONE).await?;
        let mut told = Vec::new();
        for request in self.receiver.rest() {
            assert_eq!(request.signed_by(&self.secret)?, 1);
            let event = request.json()?;
            assert_eq!(event["type"], "usage.threshold_reached");
            let number = |name: &str| event["data"][name].as_i64().context("a number");
            told.push((number("threshold")?, number("api_calls")?, number("limit")?));
        }
        told.sort_unstable();
        Ok(told)
    }

    async fn change(&self, plan: v1::Plan) -> Result<()> {
        let request = ChangePlanRequest {
            eco_id: "eco_a".into(),
            plan: plan.into(),
            apply_now: true,
            ..Default::default()
        };
        self.billing.change(request).await??;
        Ok(())
    }
}

#[tokio::test]
async fn a_threshold_is_told_when_it_is_reached_and_once() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    assert_eq!(w.told(74_999).await?, []);
    record(&w.db, "eco_a", 1).await?;
    let request = w.receiver.next().await?;
    assert_eq!(request.signed_by(&w.secret)?, 1);
    let mut event = request.json()?;
    let (start, end): (String, String) = sqlx::query_as(
        r#"select to_char(period_start, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), to_char(period_end, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           from eco_usage_records"#,
    )
    .fetch_one(&w.db.pool)
    .await?;
    let time = event["timestamp"].take();
    let time: chrono::DateTime<chrono::Utc> = time.as_str().context("a time")?.parse()?;
    assert!((chrono::Utc::now() - time).num_seconds().abs() < 60);
    let data = json!({
        "eco_id": "eco_a", "plan": "pro", "threshold": 75, "limit": 100_000, "api_calls": 75_000,
        "period": { "start": start, "end": end },
    });
    assert_eq!(event, json!({ "type": "usage.threshold_reached", "timestamp": Value::Null, "data": data }));
    assert_eq!(w.told(10_000).await?, []);
    assert_eq!(w.told(5_000).await?, [(90, 90_000, 100_000)]);
    w.billing.stop().await
}

#[tokio::test]
async fn a_flush_that_jumps_over_several_tells_each_once() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    let calls = 130_000;
    let all = [75, 90, 100, 120].map(|percent| (percent, calls, 100_000));
    assert_eq!(w.told(calls).await?, all);
    assert_eq!(w.told(1_000_000).await?, []);
    // Not even when all is counted anew.
    execute(&w.db, "insert into eco_usage_changes (eco_id, period_start) select eco_id, period_start from eco_usage_records").await?;
    assert_eq!(w.heard().await?, []);
    w.billing.stop().await
}

#[tokio::test]
async fn a_change_of_plan_is_another_limit_and_tells_nothing_twice() -> Result<()> {
    let mut w = World::with(Plan::Free).await?;
    assert_eq!(w.told(900).await?, [(75, 900, 1_000), (90, 900, 1_000)]);
    w.change(v1::Plan::Pro).await?;
    assert_eq!(w.told(100).await?, [], "1,000 of 100,000");
    assert_eq!(w.told(74_000).await?, [(75, 75_000, 100_000)]);
    w.change(v1::Plan::Free).await?;
    assert_eq!(w.heard().await?, [(100, 75_000, 1_000), (120, 75_000, 1_000)]);
    w.change(v1::Plan::Pro).await?;
    assert_eq!(w.heard().await?, []);
    w.change(v1::Plan::Enterprise).await?;
    assert_eq!(w.told(1_000_000).await?, [], "no limit, no share of it");
    w.billing.stop().await
}

#[tokio::test]
async fn a_subscription_that_does_not_grant_its_plan_has_the_free_plans_limit() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    execute(&w.db, "update eco_subscriptions set status = 'unpaid'").await?;
    record(&w.db, "eco_a", 750).await?;
    let data = w.receiver.next().await?.json()?["data"].take();
    assert_eq!(
        (&data["plan"], &data["threshold"], &data["limit"]),
        (&json!("free"), &json!(75), &json!(1_000))
    );
    w.billing.stop().await
}

#[tokio::test]
async fn a_period_is_told_of_until_it_is_settled_and_each_for_itself() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    // Of four years ago, when every month had the days that it has now: an anchor in a shorter month would be cut, and
    // the last period would have ended a day and an hour ago, or more.
    execute(
        &w.db,
        "update eco_subscriptions set anchor_time = now() - interval '1 hour' - interval '4 years'",
    )
    .await?;
    let start = |months: i32| {
        let db = w.db.pool.clone();
        async move {
            let sql = "select nexus_period_start(anchor_time, now() - make_interval(months => $1)) from eco_subscriptions";
            anyhow::Ok(sqlx::query_scalar(sql).bind(months).fetch_one(&db).await?)
        }
    };
    let (current, last, before) = (start(0).await?, start(1).await?, start(2).await?);
    record_at(&w.db, "eco_a", before, 80_000).await?;
    assert_eq!(w.heard().await?, [], "it is settled");
    record_at(&w.db, "eco_a", last, 80_000).await?;
    assert_eq!(w.heard().await?, [(75, 80_000, 100_000)], "an hour after its end");
    record_at(&w.db, "eco_a", current, 80_000).await?;
    assert_eq!(w.heard().await?, [(75, 80_000, 100_000)]);
    w.billing.stop().await
}

#[tokio::test]
async fn calls_of_keys_in_test_mode_reach_nothing() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    assert_eq!(w.told(10).await?, []);
    execute(&w.db, "update eco_usage_counters set test_units = 1000000").await?;
    assert_eq!(w.told(10).await?, []);
    w.billing.stop().await
}

/// The rows that keep a crossing from being told twice are of no use once nothing more can be reached.
#[tokio::test]
async fn what_was_reached_is_forgotten_a_month_after_the_periods_end() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    assert_eq!(w.told(80_000).await?, [(75, 80_000, 100_000)]);
    w.billing.stop().await?;
    execute(
        &w.db,
        "with old as (
             insert into eco_usage_records (eco_id, period_start, period_end, plan, plan_version, currency_code)
             select eco_id, now() - interval '70 days', now() - interval '31 days', plan, plan_version, currency_code
             from eco_usage_records returning eco_id, period_start)
         insert into eco_usage_crossings (eco_id, period_start, percent, limit_units, api_calls, crossed_time)
         select eco_id, period_start, percent, 100000, 90000, now() - interval '60 days'
         from old, unnest(array[75, 90]) as percent",
    )
    .await?;
    execute(&w.db, "update eco_usage_crossings set crossed_time = now() - interval '60 days'").await?;
    let billing = Billing::start_with(settings(&w.db)).await?;
    until(&w.db, "select count(*) = 1 and max(limit_units * percent) = 7500000 from eco_usage_crossings")
        .await?;
    billing.stop().await
}

#[tokio::test]
async fn admins_set_the_percentages_of_a_plan() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    let thresholds = |plan: v1::Plan, percents: &[i32]| SetUsageThresholdsRequest {
        thresholds: Some(UsageThresholds { plan: plan.into(), percents: percents.into() }),
    };
    for other in [user("eco_a")?, manager()?] {
        let call = other.request(thresholds(v1::Plan::Pro, &[50]));
        let refused = w.billing.client.clone().set_usage_thresholds(call).await;
        assert_eq!(refused.err().context("refused")?.code(), Code::PermissionDenied);
    }
    let call = admin()?.request(thresholds(v1::Plan::Unspecified, &[0]));
    let refused = w.billing.client.clone().set_usage_thresholds(call).await.err().context("refused")?;
    assert_eq!(fields(&refused), ["thresholds.plan", "thresholds.percents"]);

    let call = admin()?.request(thresholds(v1::Plan::Pro, &[60, 50]));
    let set = w.billing.client.clone().set_usage_thresholds(call).await?.into_inner();
    assert_eq!(set.thresholds.context("as stored")?.percents, [50, 60]);
    let call = user("eco_a")?.request(GetUsageThresholdsRequest {});
    let read = w.billing.client.clone().get_usage_thresholds(call).await?.into_inner().thresholds;
    let read: Vec<_> = read.into_iter().map(|t| (t.plan(), t.percents)).collect();
    let default = vec![75, 90, 100, 120];
    let expected =
        [(v1::Plan::Free, default.clone()), (v1::Plan::Pro, vec![50, 60]), (v1::Plan::Enterprise, default)];
    assert_eq!(read, expected);
    assert_eq!(w.told(59_000).await?, [(50, 59_000, 100_000)]);
    w.billing.stop().await
}

/// The message is committed with the usage that it is about: it outlives the server that found it.
#[tokio::test]
async fn what_was_reached_is_told_by_whoever_is_there_later() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    w.receiver.answer(Answer::Status(503));
    record(&w.db, "eco_a", 80_000).await?;
    let first = w.receiver.next().await?;
    until(&w.db, ALL_WAIT).await?;
    w.billing.kill().await?;
    let billing = Billing::start_with(settings(&w.db)).await?;
    time_passes(&w.db).await?;
    let second = w.receiver.next().await?;
    assert_eq!((second.id()?, second.body), (first.id()?, first.body));
    billing.stop().await
}

#[tokio::test]
async fn an_endpoint_hears_of_its_own_account_and_of_what_it_asked_for() -> Result<()> {
    let mut w = World::with(Plan::Pro).await?;
    seed::account(&w.db.pool, "eco_b", Plan::Pro, anchor()).await?;
    let mut others = Receiver::start().await?;
    let other = w.billing.endpoint("eco_b", &others.url).await?;
    let mut disabled = Receiver::start().await?;
    let silent = w.billing.endpoint("eco_a", &disabled.url).await?;
    let disable = UpdateWebhookEndpointRequest { enabled: Some(false), ..Default::default() };
    let shown = w.billing.update(&silent, disable).await?;
    assert_eq!(shown.disabled_reason(), WebhookDisabledReason::ByUser);
    assert_eq!(w.told(80_000).await?, [(75, 80_000, 100_000)]);
    assert!(others.rest().is_empty() && disabled.rest().is_empty());
    record(&w.db, "eco_b", 80_000).await?;
    assert_eq!(others.next().await?.signed_by(&other.secret)?, 1);
    w.billing.stop().await
}
