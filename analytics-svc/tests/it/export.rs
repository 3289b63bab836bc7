use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, config::DbArgs, convert::timestamp};
use nexus_proto::analytics::v1::{ExportUsageRequest, ExportUsageResponse, GetOverviewRequest, UsageRow};
use nexus_testkit::{db::TestDb, settings};
use sqlx::PgPool;
use tonic::{Code, Response, Status, Streaming};

use crate::support::*;

const ANA: &str = "eco_ana";
const BOB: &str = "eco_bob";

/// The hour in which the database's clock is.
async fn this_hour(pool: &PgPool) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("select date_trunc('hour', now(), 'UTC')").fetch_one(pool).await?)
}

fn request(start: DateTime<Utc>, end: DateTime<Utc>) -> ExportUsageRequest {
    ExportUsageRequest {
        eco_id: ANA.to_owned(),
        start_time: Some(timestamp(start)),
        end_time: Some(timestamp(end)),
    }
}

async fn export(
    app: &App,
    caller: &nexus_client::CallOptions,
    request: ExportUsageRequest,
) -> Result<Response<Streaming<ExportUsageResponse>>, Status> {
    app.client.clone().export_usage(caller.endless(request)).await
}

async fn rest(mut stream: Streaming<ExportUsageResponse>) -> Result<Vec<UsageRow>> {
    let mut rows = Vec::new();
    while let Some(message) = stream.message().await? {
        assert!(!message.rows.is_empty() && message.rows.len() <= 1_000);
        rows.extend(message.rows);
    }
    Ok(rows)
}

async fn all(app: &App, start: DateTime<Utc>, end: DateTime<Utc>) -> Result<Vec<UsageRow>> {
    rest(export(app, &user(ANA)?, request(start, end)).await?.into_inner()).await
}

/// So many endpoints with two calls of 30 ms together in each of the hours that began so many hours before this one.
async fn seed(
    pool: &PgPool,
    eco_id: &str,
    hour: DateTime<Utc>,
    hours_ago: std::ops::Range<i32>,
    endpoints: i32,
) -> Result<()> {
    sqlx::query(
        "insert into eco_usage_hourly (eco_id, hour, route, method, status_class, units_count, event_count,
                                       latency_sum_ms, sketch)
         select $1, $2 - make_interval(hours => h), '/v1/things/' || n, 'GET', 2, 2, 2, 30, '{}'
         from generate_series($3, $4) as h, generate_series(1, $5) as n",
    )
    .bind(eco_id)
    .bind(hour)
    .bind(hours_ago.start)
    .bind(hours_ago.end - 1)
    .bind(endpoints)
    .execute(pool)
    .await?;
    Ok(())
}

/// What identifies a row, in the order that is promised.
fn place(row: &UsageRow) -> (i64, &str, &str, i32) {
    let start = row.start_time.as_ref().map_or(0, |time| time.seconds);
    (start, &row.endpoint, &row.method, row.status_class)
}

fn assert_in_order(rows: &[UsageRow]) {
    let follow = rows.windows(2).find(|two| place(&two[0]) >= place(&two[1]));
    assert_eq!(follow, None, "each row once, in order");
}

#[tokio::test]
async fn every_row_of_the_range_comes_once_and_in_order() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &[ANA, BOB]).await?;
    let hour = this_hour(pool).await?;
    seed(pool, ANA, hour, 0..60, 70).await?;
    seed(pool, BOB, hour, 0..60, 3).await?;
    let ago = |hours| hour - TimeDelta::hours(hours);
    let rows = all(&app, ago(50), ago(2)).await?;
    assert_eq!(rows.len(), 48 * 70, "a message has 1,000 rows");
    assert_in_order(&rows);
    let first = UsageRow {
        eco_id: ANA.to_owned(),
        start_time: Some(timestamp(ago(50))),
        endpoint: "/v1/things/1".to_owned(),
        method: "GET".to_owned(),
        status_class: 2,
        calls_count: 2,
        avg_response_time_ms: 15.0,
    };
    assert_eq!(rows[0], first);
    // Hours that begin within the range; the one that is not over is one of them.
    let part = TimeDelta::minutes(1);
    assert_eq!(all(&app, ago(3) + part, ago(1) + part).await?.len(), 2 * 70);
    assert_eq!(all(&app, ago(1), hour + TimeDelta::days(2)).await?.len(), 2 * 70);
    assert_eq!(all(&app, ago(90), ago(80)).await?, [], "nothing in it");
    // As many rows as fit in messages exactly.
    seed(pool, ANA, hour, 100..110, 100).await?;
    assert_eq!(all(&app, ago(200), ago(100)).await?.len(), 900);
    assert_eq!(all(&app, ago(200), ago(99)).await?.len(), 1_000);
    Ok(())
}

/// Rows that are added behind the reader's place and before it, and hours that begin meanwhile: what was there comes once.
#[tokio::test]
async fn rows_that_are_added_meanwhile_double_nothing() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &[ANA]).await?;
    let hour = this_hour(pool).await?;
    seed(pool, ANA, hour, 1..51, 100).await?;
    let asked = request(hour - TimeDelta::days(30), hour + TimeDelta::days(30));
    let mut stream = export(&app, &user(ANA)?, asked).await?.into_inner();
    let mut rows = stream.message().await?.context("the first rows")?.rows;
    seed(pool, ANA, hour, 51..100, 1).await?;
    sqlx::raw_sql(
        "update eco_usage_hourly set units_count = 3;
         insert into eco_usage_hourly (eco_id, hour, route, method, status_class, units_count, event_count,
                                       latency_sum_ms, sketch)
         select eco_id, hour + interval '1 day', route, method, status_class, 1, 1, 1, '{}'
         from eco_usage_hourly where hour = (select max(hour) from eco_usage_hourly)",
    )
    .execute(pool)
    .await?;
    rows.extend(rest(stream).await?);
    assert_eq!(rows.len(), 5_000);
    assert_in_order(&rows);
    Ok(())
}

/// What a reader does not take is not read from the database: it holds neither memory nor a connection.
#[tokio::test]
async fn an_export_goes_as_fast_as_it_is_read() -> Result<()> {
    const HOURS: i32 = 400;
    let db = TestDb::new().await?;
    let one_connection = DbArgs { database_max_connections: 1, ..db.args() };
    let app = App::with(one_connection, db).await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &[ANA]).await?;
    let hour = this_hour(pool).await?;
    // 8 MB of messages: a connection's windows take a part of them.
    seed(pool, ANA, hour, 1..HOURS + 1, 400).await?;
    let asked = request(hour - TimeDelta::days(30), hour);
    let mut stream = export(&app, &user(ANA)?, asked).await?.into_inner();
    let mut rows = stream.message().await?.context("the first rows")?.rows;
    // The only connection is free meanwhile.
    app.client.clone().get_overview(admin()?.request(GetOverviewRequest {})).await?;
    sqlx::query("delete from eco_usage_hourly where hour > $1")
        .bind(hour - TimeDelta::hours(HOURS.into()) / 2)
        .execute(pool)
        .await?;
    seed(pool, ANA, hour, HOURS + 1..HOURS + 50, 100).await?;
    rows.extend(rest(stream).await?);
    assert_in_order(&rows);
    let left = (HOURS / 2) as usize * 400;
    assert!(rows.len() < left + left / 2, "{} rows: they were read long before they were taken", rows.len());
    assert!(rows.len() >= left, "{} rows of {left}", rows.len());
    Ok(())
}

#[tokio::test]
async fn every_bad_field_is_named() -> Result<()> {
    let app = App::start().await?;
    let now = Utc::now();
    let none = ExportUsageRequest { eco_id: "x".to_owned(), start_time: None, end_time: None };
    let missing = export(&app, &admin()?, none).await;
    assert_eq!(fields_at_fault(missing)?, ["eco_id", "start_time", "end_time"]);
    for (start, end) in [(now, now), (now, now - TimeDelta::days(400)), (now, now + TimeDelta::days(367))] {
        assert_eq!(fields_at_fault(export(&app, &admin()?, request(start, end)).await)?, ["end_time"]);
    }
    let beyond = impossible();
    assert_eq!(fields_at_fault(export(&app, &admin()?, beyond).await)?, ["start_time", "end_time"]);
    Ok(())
}

/// Times that are none.
fn impossible() -> ExportUsageRequest {
    let mut request = request(Utc::now(), Utc::now());
    for time in [&mut request.start_time, &mut request.end_time].into_iter().flatten() {
        time.seconds = i64::MAX;
    }
    request
}

#[tokio::test]
async fn a_user_exports_the_own_account_and_an_admin_any() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    let hour = this_hour(app.pool()).await?;
    seed(app.pool(), ANA, hour, 1..2, 1).await?;
    let asked = |eco_id: &str| ExportUsageRequest {
        eco_id: eco_id.to_owned(),
        ..request(hour - TimeDelta::hours(1), hour)
    };
    for (caller, eco_id) in [
        (admin()?, ANA),
        (bearer(&settings::service_token(&[Scope::Admin])?)?, ANA),
        (user(ANA)?, ANA),
        (user(ANA)?, ""),
    ] {
        assert_eq!(rest(export(&app, &caller, asked(eco_id)).await?.into_inner()).await?.len(), 1);
    }
    for caller in [user(BOB)?, bearer(&settings::service_token(&[Scope::UsageWrite])?)?] {
        assert_refused(export(&app, &caller, asked(ANA)).await, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    let unknown = export(&app, &admin()?, asked("eco_none")).await;
    assert_refused(unknown, Code::NotFound, "ACCOUNT_NOT_FOUND")?;
    Ok(())
}

/// Hours go with the raw log, days stay: a range of which hours are gone is refused, and one without usage is not.
#[tokio::test]
async fn what_can_only_be_told_in_part_is_refused() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &[ANA, BOB]).await?;
    let hour = this_hour(pool).await?;
    seed(pool, ANA, hour, 0..60, 1).await?;
    let days = "insert into eco_usage_daily (eco_id, day, route, method, status_class, units_count, event_count, latency_sum_ms)
                select $1, current_date - back, '/v1/x', 'GET', 2, 1, 1, 1 from unnest(array[0, 1, 50, 60]) as back";
    sqlx::query(days).bind(ANA).execute(pool).await?;
    let today = hour.date_naive();
    let midnight = |back: i64| (today - TimeDelta::days(back)).and_time(chrono::NaiveTime::MIN).and_utc();
    let of = async |eco_id: &str, back: i64| {
        let request =
            ExportUsageRequest { eco_id: eco_id.to_owned(), ..request(midnight(back), midnight(-1)) };
        export(&app, &user(eco_id)?, request).await.map_err(anyhow::Error::from)
    };
    for back in [50, 55, 60, 100] {
        let refused = of(ANA, back).await.err().context("a refusal")?;
        let refused: Status = refused.downcast()?;
        let kept = (today - TimeDelta::days(49)).to_string();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("start_time") && refused.message().contains(&kept), "{refused:?}");
    }
    assert!(!rest(of(ANA, 49).await?.into_inner()).await?.is_empty());
    assert_eq!(rest(of(BOB, 100).await?.into_inner()).await?, [], "there was none");
    // The middle of a day whose hours are there.
    assert!(!all(&app, hour - TimeDelta::hours(3), hour).await?.is_empty());
    Ok(())
}
