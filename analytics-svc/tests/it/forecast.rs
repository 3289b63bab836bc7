use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, convert};
use nexus_proto::analytics::v1::{ForecastUsageRequest, ForecastUsageResponse};
use nexus_testkit::settings;
use sqlx::PgPool;
use tonic::{Code, Response, Status};

use crate::support::*;

const DOLLAR: i64 = 1_000_000;
const ANA: &str = "eco_ana";

async fn call(
    app: &App,
    caller: &nexus_client::CallOptions,
    eco_id: &str,
) -> Result<Response<ForecastUsageResponse>, Status> {
    let request = ForecastUsageRequest { eco_id: eco_id.to_owned() };
    app.client.clone().forecast_usage(caller.request(request)).await
}

async fn forecast(app: &App) -> Result<ForecastUsageResponse> {
    Ok(call(app, &user(ANA)?, "").await?.into_inner())
}

/// An account whose period began so many days ago (the turn of the day) and has so many units recorded.
async fn seed(pool: &PgPool, plan: Plan, began_days_ago: i32, recorded: i64) -> Result<()> {
    accounts(pool, plan, &[ANA]).await?;
    sqlx::query(
        "update eco_subscriptions
         set anchor_time = ((now() at time zone 'UTC')::date - $1)::timestamp at time zone 'UTC'",
    )
    .bind(began_days_ago)
    .execute(pool)
    .await?;
    if recorded > 0 {
        sqlx::query("select increment_api_calls($1, $2)").bind(ANA).bind(recorded).execute(pool).await?;
    }
    Ok(())
}

/// The same usage on each of the last whole days.
async fn every_day(pool: &PgPool, days: i32, units: i64) -> Result<()> {
    for days_ago in 1..=days {
        let day = Rollup {
            eco_id: ANA,
            days_ago,
            route: "/v1/x",
            method: "GET",
            status_class: 2,
            units,
            latencies_ms: &[1],
        };
        day.insert(pool).await?;
    }
    Ok(())
}

/// Units that so many a day bring in what is left of the period, as the answer tells the times.
fn rest(answer: &ForecastUsageResponse, a_day: i64) -> Result<i64> {
    let (now, end) = (answer.as_of_time.context("now")?, answer.period_end_time.context("the end")?);
    let left = convert::datetime(&end).map_err(anyhow::Error::msg)?
        - convert::datetime(&now).map_err(anyhow::Error::msg)?;
    Ok((left.as_seconds_f64() / 86_400.0 * a_day as f64).round() as i64)
}

#[tokio::test]
async fn steady_usage_goes_on_and_costs_what_is_beyond_the_plan() -> Result<()> {
    let app = App::start().await?;
    seed(app.pool(), Plan::Pro, 10, 90_000).await?;
    every_day(app.pool(), 20, 9_000).await?;
    let answer = forecast(&app).await?;
    let end = 90_000 + rest(&answer, 9_000)?;
    assert_eq!((answer.recorded_count, answer.limit_count), (90_000, 100_000));
    assert!((answer.expected_count - end).abs() <= 1, "{answer:?}, not {end}");
    assert!(answer.low_count >= end - 1 && answer.high_count <= end + 1, "{answer:?}");
    assert!(end > 200_000, "some 18 days are left");
    assert_eq!(answer.expected_overage_micros, (answer.expected_count - 100_000) * 1_000);
    assert_eq!(answer.low_overage_micros, (answer.low_count - 100_000) * 1_000);
    assert_eq!(answer.high_overage_micros, (answer.high_count - 100_000) * 1_000);
    assert_eq!((answer.subscription_micros, answer.currency_code.as_str()), (49 * DOLLAR, "USD"));
    // 10,000 more at 9,000 a day.
    let at = |time: Option<_>| convert::datetime(&time.expect("a time")).map_err(anyhow::Error::msg);
    let reached = (at(answer.limit_reached_time)? - at(answer.as_of_time)?).as_seconds_f64();
    assert!((reached - 86_400.0 * 10.0 / 9.0).abs() < 1.0, "after {reached} s");
    Ok(())
}

#[tokio::test]
async fn a_free_account_cannot_pass_its_limit() -> Result<()> {
    let app = App::start().await?;
    seed(app.pool(), Plan::Free, 10, 700).await?;
    every_day(app.pool(), 5, 500).await?;
    let answer = forecast(&app).await?;
    let counts = (answer.low_count, answer.expected_count, answer.high_count, answer.limit_count);
    assert_eq!(counts, (1_000, 1_000, 1_000, 1_000));
    assert_eq!((answer.expected_overage_micros, answer.high_overage_micros), (0, 0));
    assert_eq!(answer.subscription_micros, 0);
    assert!(answer.limit_reached_time.is_some());
    Ok(())
}

#[tokio::test]
async fn a_spend_cap_bounds_what_it_costs() -> Result<()> {
    let app = App::start().await?;
    seed(app.pool(), Plan::Pro, 10, 99_000).await?;
    every_day(app.pool(), 20, 9_000).await?;
    sqlx::query("update eco_identities set spend_cap_micros = 3000000").execute(app.pool()).await?;
    let answer = forecast(&app).await?;
    assert_eq!((answer.expected_count, answer.limit_count), (103_000, 103_000));
    assert_eq!(answer.high_overage_micros, 3 * DOLLAR);
    // What is not paid for grants no plan: the free one's limit holds, which is passed already, and nothing is billed.
    set_status(app.pool(), ANA, "unpaid").await?;
    let answer = forecast(&app).await?;
    assert_eq!((answer.expected_count, answer.limit_count), (99_000, 1_000));
    assert_eq!((answer.high_overage_micros, answer.subscription_micros), (0, 0));
    assert_eq!(answer.limit_reached_time, answer.as_of_time);
    Ok(())
}

#[tokio::test]
async fn segments_keep_their_prices_and_corrections_count() -> Result<()> {
    let app = App::start().await?;
    seed(app.pool(), Plan::Enterprise, 10, 150_000).await?;
    // The first segment was on pro, with 20,000 beyond it; enterprise bills none.
    sqlx::query(
        "with closed as (
             insert into eco_usage_segments (eco_id, period_start, segment, plan, plan_version, closed_time,
                                             recorded_units, overage_units)
             select eco_id, nexus_period_start(anchor_time, now()), 0, 'pro', 1, now(), 120000, 20000
             from eco_subscriptions returning eco_id, period_start)
         insert into eco_usage_adjustments (eco_id, period_start, segment, units, reason, request_id, api_calls)
         select eco_id, period_start, 1, -5, 'twice', gen_random_uuid(), 149995 from closed",
    )
    .execute(app.pool())
    .await?;
    every_day(app.pool(), 3, 1_000).await?;
    let answer = forecast(&app).await?;
    assert_eq!((answer.recorded_count, answer.limit_count), (149_995, -1));
    assert!((answer.expected_count - 149_995 - rest(&answer, 1_000)?).abs() <= 1);
    let costs = [answer.low_overage_micros, answer.expected_overage_micros, answer.high_overage_micros];
    assert_eq!(costs, [20 * DOLLAR; 3]);
    assert_eq!((answer.limit_reached_time, answer.subscription_micros), (None, 500 * DOLLAR));
    Ok(())
}

#[tokio::test]
async fn an_account_without_usage_expects_none() -> Result<()> {
    let app = App::start().await?;
    seed(app.pool(), Plan::Pro, 3, 0).await?;
    let answer = forecast(&app).await?;
    assert_eq!(
        (answer.low_count, answer.expected_count, answer.high_count, answer.recorded_count),
        (0, 0, 0, 0)
    );
    assert_eq!((answer.high_overage_micros, answer.limit_reached_time), (0, None));
    Ok(())
}

#[tokio::test]
async fn a_user_sees_the_own_account_and_an_admin_any_that_goes_on() -> Result<()> {
    let app = App::start().await?;
    seed(app.pool(), Plan::Pro, 3, 1).await?;
    accounts(app.pool(), Plan::Pro, &["eco_closed"]).await?;
    close(app.pool(), "eco_closed").await?;
    for caller in [admin()?, bearer(&settings::service_token(&[Scope::Admin])?)?, user(ANA)?] {
        assert_eq!(call(&app, &caller, ANA).await?.into_inner().recorded_count, 1);
    }
    for caller in [user("eco_bob")?, bearer(&settings::service_token(&[Scope::UsageWrite])?)?] {
        assert_refused(call(&app, &caller, ANA).await, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    assert_refused(call(&app, &admin()?, "eco_none").await, Code::NotFound, "ACCOUNT_NOT_FOUND")?;
    let closed = call(&app, &admin()?, "eco_closed").await;
    assert_refused(closed, Code::FailedPrecondition, "ACCOUNT_CLOSED")?;
    assert_eq!(fields_at_fault(call(&app, &admin()?, "nobody").await)?, ["eco_id"]);
    Ok(())
}
