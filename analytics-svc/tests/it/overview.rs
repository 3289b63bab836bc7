use anyhow::Result;
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_kit::auth::Scope;
use nexus_proto::{
    analytics::v1::{GetOverviewRequest, GetOverviewResponse, PlanCount, TopUser},
    common::v1::Plan as PbPlan,
};
use nexus_testkit::settings;
use tonic::Code;

use crate::support::*;

const DOLLAR: i64 = 1_000_000;

async fn overview(app: &App) -> Result<GetOverviewResponse> {
    Ok(app.client.clone().get_overview(admin()?.request(GetOverviewRequest {})).await?.into_inner())
}

fn by_plan(free: i64, pro: i64, enterprise: i64) -> Vec<PlanCount> {
    [(PbPlan::Free, free), (PbPlan::Pro, pro), (PbPlan::Enterprise, enterprise)]
        .map(|(plan, users_count)| PlanCount { plan: plan.into(), users_count })
        .to_vec()
}

fn top(eco_id: &str, api_calls_count: i64, plan: PbPlan) -> TopUser {
    TopUser { eco_id: eco_id.to_owned(), api_calls_count, plan: plan.into() }
}

#[tokio::test]
async fn an_empty_system_has_zeros() -> Result<()> {
    let app = App::start().await?;
    let database_time: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select now()").fetch_one(app.pool()).await?;
    let shown = overview(&app).await?;
    let as_of = shown.as_of_time.expect("the time of the figures");
    assert!(as_of.seconds >= database_time.timestamp());
    assert_eq!(
        shown,
        GetOverviewResponse {
            users_by_plan: by_plan(0, 0, 0),
            currency_code: "USD".to_owned(),
            as_of_time: Some(as_of),
            ..Default::default()
        }
    );
    Ok(())
}

#[tokio::test]
async fn a_hundred_free_forty_five_pro_and_five_enterprise_are_4705_dollars() -> Result<()> {
    let app = App::start().await?;
    for (plan, count) in [(Plan::Free, 100), (Plan::Pro, 45), (Plan::Enterprise, 5)] {
        let ids: Vec<_> = (0..count).map(|n| format!("eco_{plan}_{n}")).collect();
        accounts(app.pool(), plan, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    }
    let shown = overview(&app).await?;
    assert_eq!(shown.total_users_count, 150);
    assert_eq!(shown.users_by_plan, by_plan(100, 45, 5));
    assert_eq!(shown.mrr_micros, 4_705 * DOLLAR);
    assert_eq!((shown.overage_revenue_micros, shown.total_revenue_micros), (0, 4_705 * DOLLAR));
    assert_eq!(shown.top_users, [], "nobody has called anything");
    Ok(())
}

#[tokio::test]
async fn this_month_is_the_current_period_of_each_account() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_a", "eco_b", "eco_c"]).await?;
    // Another account's period begins on another day: today's is current all the same.
    sqlx::query(
        "update eco_subscriptions set anchor_time = now() - interval '1 hour' where eco_id = 'eco_b'",
    )
    .execute(pool)
    .await?;
    for (eco_id, months_ago, api_calls, overage_micros) in [
        ("eco_a", 0, 105_000, 5 * DOLLAR),
        ("eco_b", 0, 110_000, 10 * DOLLAR + 1),
        ("eco_a", 1, 900_000, 800 * DOLLAR),
        ("eco_c", 1, 900_000, 800 * DOLLAR),
    ] {
        Summary { eco_id, months_ago, api_calls, overage_units: api_calls - 100_000, overage_micros }
            .insert(pool)
            .await?;
    }
    let shown = overview(&app).await?;
    assert_eq!(shown.total_api_calls_count, 215_000);
    assert_eq!(shown.overage_revenue_micros, 15 * DOLLAR + 1);
    assert_eq!(shown.mrr_micros, 3 * 49 * DOLLAR);
    assert_eq!(shown.total_revenue_micros, 3 * 49 * DOLLAR + 15 * DOLLAR + 1);
    assert_eq!(shown.top_users, [top("eco_b", 110_000, PbPlan::Pro), top("eco_a", 105_000, PbPlan::Pro)]);
    Ok(())
}

#[tokio::test]
async fn the_mrr_counts_the_very_subscriptions_that_the_rule_says() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Enterprise, &["eco_a"]).await?;
    for status in SubscriptionStatus::ALL {
        set_status(app.pool(), "eco_a", status.as_str()).await?;
        let counts = matches!(status, SubscriptionStatus::Active | SubscriptionStatus::PastDue);
        let expected = if counts { 500 * DOLLAR } else { 0 };
        let shown = overview(&app).await?;
        assert_eq!(shown.mrr_micros, expected, "{status}");
        assert_eq!(shown.users_by_plan, by_plan(0, 0, 1), "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn closed_accounts_and_former_subscriptions_are_in_no_figure() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_closed", "eco_changed"]).await?;
    usage(pool, "eco_closed", 10).await?;
    usage(pool, "eco_changed", 7).await?;
    close(pool, "eco_closed").await?;
    sqlx::query("update eco_subscriptions set ended_time = now() where eco_id = 'eco_changed'")
        .execute(pool)
        .await?;
    sqlx::query(
        "insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
         values ('eco_changed', 'enterprise', 1, 'active', $1)",
    )
    .bind(anchor()?)
    .execute(pool)
    .await?;
    let shown = overview(&app).await?;
    assert_eq!((shown.total_users_count, shown.total_api_calls_count), (1, 7));
    assert_eq!(shown.users_by_plan, by_plan(0, 0, 1));
    assert_eq!(shown.mrr_micros, 500 * DOLLAR);
    assert_eq!(shown.top_users, [top("eco_changed", 7, PbPlan::Enterprise)]);
    Ok(())
}

#[tokio::test]
async fn other_currencies_are_not_part_of_the_sums_of_money() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    sqlx::query(
        "insert into eco_plan_prices (plan, version, currency_code, monthly_micros) values ('pro', 1, 'EUR', 45000000)",
    )
    .execute(pool)
    .await?;
    accounts(pool, Plan::Pro, &["eco_usd", "eco_eur"]).await?;
    sqlx::query("update eco_identities set currency_code = 'EUR' where eco_id = 'eco_eur'")
        .execute(pool)
        .await?;
    for eco_id in ["eco_usd", "eco_eur"] {
        let over =
            Summary { eco_id, months_ago: 0, api_calls: 100_002, overage_units: 2, overage_micros: 2_000 };
        over.insert(pool).await?;
    }
    let shown = overview(&app).await?;
    assert_eq!((shown.total_users_count, shown.total_api_calls_count), (2, 200_004));
    assert_eq!((shown.mrr_micros, shown.overage_revenue_micros), (49 * DOLLAR, 2_000));
    Ok(())
}

#[tokio::test]
async fn five_top_users_ties_by_id() -> Result<()> {
    let app = App::start().await?;
    let ids = ["eco_f", "eco_a", "eco_e", "eco_b", "eco_d", "eco_c"];
    accounts(app.pool(), Plan::Free, &ids).await?;
    for eco_id in ids {
        usage(app.pool(), eco_id, if eco_id == "eco_f" { 51 } else { 50 }).await?;
    }
    let shown: Vec<_> = overview(&app).await?.top_users.into_iter().map(|u| u.eco_id).collect();
    assert_eq!(shown, ["eco_f", "eco_a", "eco_b", "eco_c", "eco_d"]);
    Ok(())
}

#[tokio::test]
async fn it_is_for_admins() -> Result<()> {
    let app = App::start().await?;
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    app.client.clone().get_overview(service.request(GetOverviewRequest {})).await?;
    for caller in [user("eco_a")?, bearer(&settings::service_token(&[Scope::BillingRun])?)?] {
        let call = app.client.clone().get_overview(caller.request(GetOverviewRequest {})).await;
        assert_refused(call, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    Ok(())
}
