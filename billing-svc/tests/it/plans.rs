//! New versions of plans, and the end of accounts.

use anyhow::{Context, Result, ensure};
use nexus_core::plan::Plan as CorePlan;
use nexus_kit::status;
use nexus_proto::{
    billing::v1::{
        AccountStatus, ChangePlanRequest, CloseAccountRequest, PlanPrice, PlanVersion, UpsertPlanRequest,
    },
    common::v1::{Plan, SubscriptionStatus},
};
use nexus_testkit::{db::TestDb, seed, settings};
use tonic::{Code, Status};

use crate::support::{Billing, Sim, anchor, fields, manager, record, until, user};

fn pro(included: i64, overage_micros: i64, request: u8) -> UpsertPlanRequest {
    let price = PlanPrice {
        currency_code: "USD".to_owned(),
        monthly_micros: 59_000_000,
        overage_micros,
        overage_per_count: 1,
    };
    UpsertPlanRequest {
        plan: Some(PlanVersion {
            plan: Plan::Pro.into(),
            included_count: included,
            prices: vec![price],
            ..PlanVersion::default()
        }),
        request_id: format!("00000000-0000-4000-8000-0000000000{request:02}"),
    }
}

async fn upsert(billing: &Billing, request: UpsertPlanRequest) -> Result<Result<PlanVersion, Status>> {
    let answer = billing.client.clone().upsert_plan(user(settings::ADMIN)?.request(request)).await;
    answer.map_or_else(|status| Ok(Err(status)), |answer| Ok(Ok(answer.into_inner().plan.context("a plan")?)))
}

/// Plan and version that `eco_a` has, and those that wait.
async fn subscription(db: &TestDb) -> Result<(String, i32, Option<String>, Option<i32>)> {
    let statement = "select plan, plan_version, next_plan, next_plan_version from eco_subscriptions
        where eco_id = 'eco_a' and ended_time is null";
    Ok(sqlx::query_as(statement).fetch_one(&db.pool).await?)
}

#[tokio::test]
async fn accounts_get_a_new_version_with_their_next_period() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 100_500).await?;
    let made = upsert(&billing, pro(50_000, 2_000, 1)).await??;
    assert_eq!((made.version, made.included_count, made.prices[0].overage_micros), (2, 50_000, 2_000));
    // A repeat, and one that says the same, make no other.
    assert_eq!(upsert(&billing, pro(50_000, 2_000, 1)).await??.version, 2);
    assert_eq!(upsert(&billing, pro(50_000, 2_000, 2)).await??.version, 2);
    let Err(other) = upsert(&billing, pro(1, 1, 1)).await? else { anyhow::bail!("not refused") };
    assert_eq!(fields(&other), ["request_id"]);

    let waits = ("pro".to_owned(), 1, Some("pro".to_owned()), Some(2));
    assert_eq!(subscription(&db).await?, waits);
    // This period goes on as it began.
    let overage = billing.overage("eco_a").await?;
    assert_eq!(
        (overage.overage_count, overage.overage_micros, overage.included_count),
        (500, 500_000, 100_000)
    );
    // Asking for the own plan keeps what waits.
    let ask = |plan: Plan| ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: plan.into(),
        ..Default::default()
    };
    billing.change(ask(Plan::Pro)).await??;
    assert_eq!(subscription(&db).await?, waits);
    // A downgrade that waits, and is taken back: the newest version waits again.
    billing.change(ask(Plan::Free)).await??;
    assert_eq!(subscription(&db).await?.2.as_deref(), Some("free"));
    billing.change(ask(Plan::Pro)).await??;
    assert_eq!(subscription(&db).await?, waits);
    // A newer one before it came into force.
    assert_eq!(upsert(&billing, pro(60_000, 3_000, 3)).await??.version, 3);
    assert_eq!(subscription(&db).await?, ("pro".to_owned(), 1, Some("pro".to_owned()), Some(3)));

    // The period has ended: what was counted in it keeps its version, what comes has the new one.
    sqlx::query(
        "update eco_subscriptions set anchor_time = anchor_time - interval '1 month', next_plan_time = now()",
    )
    .execute(&db.pool)
    .await?;
    let shift = "update eco_subscriptions set anchor_time = next_plan_time";
    sqlx::query(shift).execute(&db.pool).await?;
    record(&db, "eco_a", 60_010).await?;
    let overage = billing.overage("eco_a").await?;
    assert_eq!((overage.overage_count, overage.overage_micros, overage.included_count), (10, 30_000, 60_000));
    // The next version applies what has come into force, and waits itself.
    assert_eq!(upsert(&billing, pro(70_000, 3_000, 4)).await??.version, 4);
    assert_eq!(subscription(&db).await?, ("pro".to_owned(), 3, Some("pro".to_owned()), Some(4)));
    assert_eq!(billing.overage("eco_a").await?.included_count, 60_000);
    Ok(())
}

/// A process that ended between making a version and handing it out.
#[tokio::test]
async fn what_was_not_handed_out_is_taken_up_at_the_start() -> Result<()> {
    let db = TestDb::new().await?;
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    for statement in [
        "insert into eco_plans (plan, version, included_units, hard_limit) values ('pro', 2, 5, false)",
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros, overage_per_units)
         values ('pro', 2, 'USD', 1, 1, 1)",
    ] {
        sqlx::query(statement).execute(&db.pool).await?;
    }
    let billing = Billing::start(&db, "http://127.0.0.1:9/").await?;
    until(
        &db,
        "select exists (select from eco_subscriptions where next_plan = 'pro' and next_plan_version = 2)",
    )
    .await?;
    billing.stop().await
}

#[tokio::test]
async fn a_version_that_cannot_be_is_refused_field_by_field() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, "http://127.0.0.1:9/").await?;
    let price = |code: &str| PlanPrice {
        currency_code: code.to_owned(),
        monthly_micros: -1,
        overage_micros: 1,
        overage_per_count: 0,
    };
    let bad = UpsertPlanRequest {
        plan: Some(PlanVersion {
            included_count: -1,
            hard_limit: true,
            prices: vec![price("USD"), price("USD"), price("x")],
            ..PlanVersion::default()
        }),
        request_id: String::new(),
    };
    let Err(refused) = upsert(&billing, bad).await? else { anyhow::bail!("not refused") };
    let names = fields(&refused);
    for field in [
        "plan.plan",
        "plan.hard_limit",
        "plan.prices[0].monthly_micros",
        "plan.prices[0].overage_per_count",
        "plan.prices[1].currency_code",
        "plan.prices[2].currency_code",
        "request_id",
    ] {
        ensure!(names.iter().any(|name| name == field), "{field} is not among {names:?}");
    }
    // Accounts of the plan need a price in their currency.
    seed::account(&db.pool, "eco_a", CorePlan::Pro, anchor()).await?;
    sqlx::query("update eco_identities set currency_code = 'EUR'").execute(&db.pool).await?;
    let Err(refused) = upsert(&billing, pro(1, 1, 1)).await? else { anyhow::bail!("not refused") };
    assert_eq!(fields(&refused), ["plan.prices"]);
    let request = manager()?.request(pro(1, 1, 1));
    let Err(refused) = billing.client.clone().upsert_plan(request).await else {
        anyhow::bail!("not refused")
    };
    assert_eq!(refused.code(), Code::PermissionDenied);
    Ok(())
}

#[tokio::test]
async fn a_closed_account_takes_no_calls_and_still_pays_what_it_owes() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    let billing = Billing::start(&db, &sim.base).await?;
    sim.pro(&db, "eco_a").await?;
    record(&db, "eco_a", 101_015).await?;
    let request = CloseAccountRequest { eco_id: "eco_a".to_owned(), ..CloseAccountRequest::default() };
    let close = async || {
        let answer = billing.client.clone().close_account(manager()?.request(request.clone())).await?;
        answer.into_inner().account.context("an account")
    };
    let closed = close().await?;
    assert_eq!(
        (closed.status(), closed.subscription_status()),
        (AccountStatus::Closed, SubscriptionStatus::Canceled)
    );
    ensure!(closed.close_time.is_some());
    assert_eq!(close().await?, closed);
    ensure!(record(&db, "eco_a", 1).await.is_err(), "a closed account was counted for");

    assert_eq!(billing.run_all().await?.charged_count, 1);
    assert_eq!(sim.amounts().await?, [101]);
    // Once its period takes no more, half a cent is rounded up.
    sqlx::query("update eco_usage_records set period_end = now() - interval '1 day'")
        .execute(&db.pool)
        .await?;
    billing.run_all().await?;
    assert_eq!(sim.amounts().await?, [101, 1]);
    let ask = ChangePlanRequest { eco_id: "eco_a".to_owned(), plan: Plan::Free.into(), ..Default::default() };
    let Err(refused) = billing.change(ask).await? else { anyhow::bail!("not refused") };
    assert_eq!(status::reason(&refused), "ACCOUNT_CLOSED");
    Ok(())
}
