//! Changes of plan: what they do to segments, overage, charges and the time after them.

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use nexus_billing::store::stripe_subscriptions;
use nexus_core::plan::Plan as CorePlan;
use nexus_kit::status;
use nexus_proto::{
    billing::v1::{ChangePlanRequest, CreateAccountRequest, ProcessOverageRequest},
    common::v1::Plan,
};
use nexus_testkit::{db::TestDb, seed};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{Billing, PlanAnswer, Sim, anchor, fields, manager, record, record_at, until, user};

const NO_STRIPE: &str = "http://127.0.0.1:9/";

/// A change of the plan of `eco_a`, now.
fn now(plan: Plan) -> ChangePlanRequest {
    ChangePlanRequest {
        eco_id: "eco_a".into(),
        plan: plan.into(),
        apply_now: true,
        ..ChangePlanRequest::default()
    }
}

/// The same, a downgrade at the period's end.
fn later(plan: Plan) -> ChangePlanRequest {
    ChangePlanRequest { apply_now: false, ..now(plan) }
}

/// What is kept of closed segments: number, plan, recorded and overage units.
async fn segments(db: &TestDb) -> Result<Vec<(i32, String, Option<i64>, Option<i64>)>> {
    let statement = "select segment, plan, recorded_units, overage_units from eco_usage_segments
        order by period_start, segment";
    Ok(sqlx::query_as(statement).fetch_all(&db.pool).await?)
}

async fn epoch(db: &TestDb) -> Result<i32> {
    Ok(sqlx::query_scalar("select plan_epoch from eco_subscriptions").fetch_one(&db.pool).await?)
}

#[tokio::test]
async fn each_segment_owes_by_its_own_plan_and_a_change_alters_nothing_before_it() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 120_000).await?;
    // Unlimited now: what was over the limit before still is, and nothing more.
    assert_eq!(billing.change(now(Plan::Enterprise)).await??.plan, Plan::Enterprise);
    record(&db, "eco_a", 50_000).await?;
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.overage_count, overage.overage_micros), (20_000, 20_000_000));
    assert_eq!(overage.included_count, -1);
    // Back to pro, beyond its limit: each call from now on, and none of those before.
    billing.change(now(Plan::Pro)).await??;
    assert_eq!(billing.overage("eco_a").await?.overage_count, 20_000);
    record(&db, "eco_a", 10).await?;
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.overage_count, overage.overage_micros), (20_010, 20_010_000));
    assert_eq!(
        segments(&db).await?,
        [(0, "pro".into(), Some(120_000), Some(20_000)), (1, "enterprise".into(), Some(50_000), Some(0)),]
    );
    let counted: Vec<(i32, i64)> =
        sqlx::query_as("select segment, recorded_units from eco_usage_counters order by segment")
            .fetch_all(&db.pool)
            .await?;
    assert_eq!(counted, [(0, 120_000), (1, 50_000), (2, 10)]);

    until(&db, "select exists (select from eco_usage_records where plan = 'pro' and api_calls = 170010)")
        .await?;
    billing.change(now(Plan::Free)).await??;
    // Of its own, free has no overage; the summary says so too, before anything more is counted.
    until(
        &db,
        "select exists (select from eco_usage_records where plan = 'free' and api_calls = 170010
                        and overage_units = 20010 and overage_micros = 20010000)",
    )
    .await?;
    let dry_run = ProcessOverageRequest { dry_run: true, ..ProcessOverageRequest::default() };
    let planned = billing.run(dry_run).await?.planned_charges;
    let terms: Vec<_> = planned
        .iter()
        .map(|p| (p.included_count, p.price_micros, p.overage_count, p.charge_micros))
        .collect();
    assert_eq!(terms, [(100_000, 1_000, 20_010, 20_010_000)]);
    assert_eq!(billing.run_all().await?.total_micros, 20_010_000);
    let items = sim.items().await?;
    assert_eq!(items[0]["description"], json!("API overage: 20,010 calls beyond 100k limit"));
    assert_eq!(billing.run_all().await?.charged_count, 0);
    billing.stop().await
}

/// Lets the current period be over: its end, for which a downgrade waits, is the start of the one that is
/// current then. Returns the start of the one that is over.
async fn end_period(db: &TestDb) -> Result<DateTime<Utc>> {
    sqlx::query("delete from eco_usage_records").execute(&db.pool).await?;
    let statement = "with moved as (
            update eco_subscriptions set anchor_time = anchor_time - interval '2 months' returning anchor_time)
        select nexus_period_start(anchor_time, nexus_period_start(anchor_time, now()) - interval '1 microsecond')
        from moved";
    let start: DateTime<Utc> = sqlx::query_scalar(statement).fetch_one(&db.pool).await?;
    for statement in [
        "update eco_subscriptions set next_plan_time = nexus_period_start(anchor_time, now())",
        "update eco_usage_counters c set period_start = nexus_period_start(anchor_time, nexus_period_start(anchor_time, now())
                                                                          - interval '1 microsecond')
         from eco_subscriptions s where s.eco_id = c.eco_id",
    ] {
        sqlx::query(statement).execute(&db.pool).await?;
    }
    Ok(start)
}

#[tokio::test]
async fn a_downgrade_waits_for_the_end_of_the_period_and_comes_by_itself() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    record(&db, "eco_a", 100_500).await?;
    let end: DateTime<Utc> =
        sqlx::query_scalar("select nexus_period_end(anchor_time, now()) from eco_subscriptions")
            .fetch_one(&db.pool)
            .await?;
    let waiting = PlanAnswer { plan: Plan::Pro, apply_time: end };
    assert_eq!(billing.change(later(Plan::Free)).await??, waiting);
    assert_eq!(billing.change(later(Plan::Free)).await??, waiting);
    assert_eq!(billing.overage("eco_a").await?.overage_count, 500);
    assert_eq!((segments(&db).await?.len(), epoch(&db).await?), (0, 0));

    let before = end_period(&db).await?;
    let get = nexus_proto::billing::v1::GetAccountRequest { eco_id: "eco_a".into() };
    let read = billing.client.clone().get_account(manager()?.request(get)).await?.into_inner();
    assert_eq!(read.account.context("an account")?.plan(), Plan::Free);
    let shown: String = sqlx::query_scalar("select plan from eco_current_usage").fetch_one(&db.pool).await?;
    assert_eq!(shown, "free");
    record(&db, "eco_a", 2_000).await?;
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.overage_count, overage.included_count), (0, 1_000));
    // A late event of the period that is over is priced as that was, whatever comes after.
    record_at(&db, "eco_a", before, 10).await?;
    until(&db, "select exists (select from eco_usage_records where plan = 'pro' and overage_units = 510)")
        .await?;

    billing.change(now(Plan::Enterprise)).await??;
    record_at(&db, "eco_a", before, 5).await?;
    until(&db, "select exists (select from eco_usage_records where plan = 'pro' and overage_units = 515)")
        .await?;
    until(
        &db,
        "select exists (select from eco_usage_records where plan = 'enterprise' and api_calls = 2000)",
    )
    .await?;
    assert_eq!(
        segments(&db).await?,
        [(0, "pro".into(), None, None), (0, "free".into(), Some(2_000), Some(0))],
        "the period's end ended one, which takes late events; the change closed the other"
    );
    assert_eq!(epoch(&db).await?, 2);
    billing.stop().await
}

#[tokio::test]
async fn a_downgrade_that_waits_can_be_taken_back_and_overtaken() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    let waits = "select exists (select from eco_subscriptions where next_plan is not null)";
    let waits = async || Ok::<bool, anyhow::Error>(sqlx::query_scalar(waits).fetch_one(&db.pool).await?);
    billing.change(later(Plan::Free)).await??;
    assert!(waits().await?);
    assert_eq!(billing.change(later(Plan::Pro)).await??.plan, Plan::Pro);
    assert!(!waits().await?);
    billing.change(later(Plan::Free)).await??;
    assert_eq!(billing.change(later(Plan::Enterprise)).await??.plan, Plan::Enterprise);
    assert!(!waits().await?);
    assert_eq!((segments(&db).await?.len(), epoch(&db).await?), (1, 1));
    billing.stop().await
}

#[tokio::test]
async fn the_same_plan_is_no_change_and_a_repeat_gets_the_first_answer() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Free, anchor()).await?;
    let request =
        ChangePlanRequest { request_id: "7f5cbd0c-0d4c-4f6f-9c41-6a2f0f8d7a10".into(), ..now(Plan::Pro) };
    // All at once: one changes, the others hear of it.
    let answers = join_all((0..6).map(|_| billing.change(request.clone()))).await;
    let answers = answers.into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
    assert_eq!(answers.len(), 6);
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.plan == Plan::Pro), "{answers:?}");
    assert_eq!(billing.change(now(Plan::Pro)).await??.plan, Plan::Pro);
    assert_eq!((segments(&db).await?.len(), epoch(&db).await?), (1, 1));

    billing.change(now(Plan::Enterprise)).await??;
    assert_eq!(billing.change(request.clone()).await??, answers[0]);
    assert_eq!((segments(&db).await?.len(), epoch(&db).await?), (2, 2));
    for other in [
        ChangePlanRequest { plan: Plan::Free.into(), ..request.clone() },
        ChangePlanRequest { apply_now: false, ..request.clone() },
    ] {
        let refused = billing.change(other).await?.err().context("an error")?;
        assert_eq!(
            (refused.code(), fields(&refused)),
            (Code::InvalidArgument, vec!["request_id".to_owned()])
        );
    }
    billing.stop().await
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_and_says_why() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    let bad = ChangePlanRequest {
        eco_id: "acct".into(),
        plan: 77,
        request_id: "1".into(),
        ..ChangePlanRequest::default()
    };
    let refused = billing.change(bad).await?.err().context("an error")?;
    assert_eq!(fields(&refused), ["eco_id", "plan", "request_id"]);
    let refused = billing.change(now(Plan::Unspecified)).await?.err().context("an error")?;
    assert_eq!(fields(&refused), ["plan"]);
    let unknown = ChangePlanRequest { eco_id: "eco_nobody".into(), ..now(Plan::Pro) };
    let refused = billing.change(unknown).await?.err().context("an error")?;
    assert_eq!((refused.code(), status::reason(&refused).as_str()), (Code::NotFound, "ACCOUNT_NOT_FOUND"));

    let own = ChangePlanRequest { eco_id: String::new(), ..now(Plan::Free) };
    let others = billing.client.clone().change_plan(user("eco_b")?.request(now(Plan::Free))).await;
    assert_eq!(others.map(|_| ()).map_err(|s| s.code()), Err(Code::PermissionDenied));
    let own = billing.client.clone().change_plan(user("eco_a")?.request(own)).await?.into_inner();
    assert_eq!(own.account.context("an account")?.plan(), Plan::Free);

    sqlx::query("update eco_identities set currency_code = 'EUR'").execute(&db.pool).await?;
    for request in [now(Plan::Pro), now(Plan::Enterprise)] {
        let refused = billing.change(request).await?.err().context("an error")?;
        assert_eq!(fields(&refused), ["plan"]);
    }
    seed::stripe_ids(&db.pool, "eco_a", "cus_a", Some("sub_a")).await?;
    let refused = billing.change(now(Plan::Pro)).await?.err().context("an error")?;
    assert_eq!(
        (refused.code(), status::reason(&refused).as_str()),
        (Code::Unavailable, "STRIPE_UNAVAILABLE"),
        "it is changed there"
    );
    assert!(refused.message().contains("Stripe"), "{refused:?}");
    sqlx::query("update eco_identities set status = 'closed', closed_time = now()").execute(&db.pool).await?;
    let refused = billing.change(now(Plan::Pro)).await?.err().context("an error")?;
    assert_eq!(
        (refused.code(), status::reason(&refused).as_str()),
        (Code::FailedPrecondition, "ACCOUNT_CLOSED")
    );
    assert_eq!((segments(&db).await?.len(), epoch(&db).await?), (1, 1), "what is refused changes nothing");
    billing.stop().await
}

#[tokio::test]
async fn an_account_gets_the_newest_version_of_the_plan() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    for statement in [
        "insert into eco_plans (plan, version, included_units, hard_limit) values ('pro', 2, 50, false)",
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros, overage_per_units)
         values ('pro', 2, 'USD', 1, 2000, 3)",
    ] {
        sqlx::query(statement).execute(&db.pool).await?;
    }
    let create = CreateAccountRequest { eco_id: "eco_a".into(), ..CreateAccountRequest::default() };
    billing.client.clone().create_account(manager()?.request(create)).await?;
    record(&db, "eco_a", 40).await?;
    billing.change(later(Plan::Pro)).await??;
    record(&db, "eco_a", 20).await?;
    let overage = billing.overage("eco_a").await?;
    // 10 of the 20 are beyond 50: what was counted under free counts, and is not billed.
    assert_eq!((overage.overage_count, overage.overage_micros, overage.included_count), (10, 6_666, 50));
    billing.stop().await
}

/// Whoever asks for nothing must not hold up those who count.
#[tokio::test]
async fn only_a_change_waits_for_who_counts() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    let mut counts = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query(
        "select pg_advisory_xact_lock_shared(hashtext('nexus_plan_range'), nexus_plan_range('eco_a'))",
    )
    .execute(&mut *counts)
    .await?;
    let named =
        |plan| ChangePlanRequest { request_id: "7f5cbd0c-0d4c-4f6f-9c41-6a2f0f8d7a11".into(), ..now(plan) };
    // A repeat, too.
    for request in [now(Plan::Pro), later(Plan::Pro), named(Plan::Pro), named(Plan::Pro)] {
        assert_eq!(billing.change(request).await??.plan, Plan::Pro);
    }
    let reused = billing.change(named(Plan::Free)).await?.expect_err("another change");
    assert_eq!(fields(&reused), ["request_id"]);
    // One that has something to do waits, and is refused in the end.
    let waited = billing.change(now(Plan::Enterprise)).await?.expect_err("the lock is held");
    assert_eq!(waited.code(), Code::Unavailable);
    let answers: i64 =
        sqlx::query_scalar("select count(*) from eco_plan_requests").fetch_one(&db.pool).await?;
    assert_eq!(answers, 1);
    counts.commit().await?;
    assert_eq!(billing.change(now(Plan::Enterprise)).await??.plan, Plan::Enterprise);
    Ok(())
}

/// Stripe moves the anchor: the period that the change waits for ends at another time.
#[tokio::test]
async fn a_change_that_waits_for_a_periods_end_waits_for_the_end_of_the_new_one() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor() - TimeDelta::days(7)).await?;
    billing.change(later(Plan::Free)).await??;
    let id: i64 =
        sqlx::query_scalar("select subscription_id from eco_subscriptions").fetch_one(&db.pool).await?;
    let mut connection = nexus_kit::db::acquire(&db.pool).await?;
    stripe_subscriptions::set_anchor(&mut connection, id, anchor()).await?;
    let ends = "select next_plan_time, nexus_period_end(anchor_time, now()) from eco_subscriptions";
    let (waits, ends): (DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(ends).fetch_one(&db.pool).await?;
    assert_eq!(waits, ends);
    Ok(())
}

#[tokio::test]
async fn a_plan_is_given_so_often_a_day_and_can_always_be_taken_back() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    let seeded = "insert into eco_usage_segments
            (eco_id, period_start, segment, plan, plan_version, closed_time, recorded_units, overage_units)
        select 'eco_a', now() - interval '90 days', n, 'pro', 1, now() - interval '23 hours', 0, 0
        from generate_series(1, 99) as n";
    sqlx::query(seeded).execute(&db.pool).await?;
    billing.change(now(Plan::Enterprise)).await??;
    let refused = billing.change(now(Plan::Pro)).await?.err().context("not refused")?;
    let expected = (Code::ResourceExhausted, "TOO_MANY_PLAN_CHANGES".to_owned());
    assert_eq!((refused.code(), status::reason(&refused)), expected);
    let details = refused.get_error_details();
    let retry = details.retry_info().and_then(|info| info.retry_delay).context("a time")?;
    assert!((3_500..=3_600).contains(&retry.as_secs()), "{retry:?}");
    assert_eq!((segments(&db).await?.len(), epoch(&db).await?), (100, 1));
    assert_eq!(billing.change(now(Plan::Free)).await??.plan, Plan::Free);
    billing.stop().await
}
