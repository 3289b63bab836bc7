use anyhow::Result;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::analytics::v1::{EndpointStats, ListEndpointStatsRequest, ListEndpointStatsResponse};
use nexus_testkit::settings;
use tonic::{Code, Response, Status};

use crate::support::*;

const ANA: &str = "eco_ana";

async fn list(
    app: &App,
    caller: &nexus_client::CallOptions,
    request: ListEndpointStatsRequest,
) -> Result<Response<ListEndpointStatsResponse>, Status> {
    app.client.clone().list_endpoint_stats(caller.request(request)).await
}

fn own(page_size: i32, page_token: &str) -> ListEndpointStatsRequest {
    ListEndpointStatsRequest { page_size, page_token: page_token.to_owned(), ..Default::default() }
}

fn rollup<'a>(route: &'a str, units: i64) -> Rollup<'a> {
    Rollup { eco_id: ANA, days_ago: 0, route, method: "GET", status_class: 2, units, latencies_ms: &[100] }
}

fn names(endpoints: &[EndpointStats]) -> Vec<String> {
    endpoints.iter().map(|e| format!("{} {}", e.method, e.endpoint)).collect()
}

/// The value at a nearest rank.
fn exact(sorted: &[i32], q: f64) -> f64 {
    f64::from(sorted[(q * sorted.len() as f64).ceil() as usize - 1])
}

#[tokio::test]
async fn an_endpoint_merges_its_days_and_status_classes() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA, "eco_ben"]).await?;
    let today: Vec<i32> = (0..400).map(|i| 50 + i % 97).collect();
    let before: Vec<i32> = (0..90).map(|i| 900 + 7 * i).collect();
    let failed: Vec<i32> = (0..10).map(|i| 5_000 + 100 * i).collect();
    let elsewhere = [60_000; 2_000];
    for row in [
        Rollup { latencies_ms: &today, ..rollup("/v1/x", 760) },
        Rollup { latencies_ms: &before, days_ago: 6, ..rollup("/v1/x", 190) },
        Rollup { latencies_ms: &failed, status_class: 5, ..rollup("/v1/x", 50) },
        Rollup { days_ago: 7, latencies_ms: &elsewhere, ..rollup("/v1/x", 1_000_000) },
        Rollup { eco_id: "eco_ben", latencies_ms: &elsewhere, ..rollup("/v1/x", 1_000_000) },
        Rollup { method: "PUT", days_ago: 1, latencies_ms: &elsewhere, ..rollup("/v1/x", 5) },
    ] {
        row.insert(app.pool()).await?;
    }
    let answer = list(&app, &user(ANA)?, own(0, "")).await?.into_inner();
    assert_eq!((answer.days_count, answer.next_page_token.as_str()), (7, ""));
    let [x, put] = &answer.endpoints[..] else { panic!("two endpoints, not {answer:?}") };
    assert_eq!((put.method.as_str(), put.total_count), ("PUT", 5));
    assert_eq!((x.endpoint.as_str(), x.method.as_str(), x.total_count), ("/v1/x", "GET", 1_000));
    assert!((x.success_rate - 0.95).abs() < 1e-12, "units, not calls: {}", x.success_rate);

    let mut all = [today, before, failed].concat();
    all.sort_unstable();
    let mean = all.iter().map(|ms| f64::from(*ms)).sum::<f64>() / all.len() as f64;
    assert!((x.avg_response_time_ms - mean).abs() < 1e-9);
    for (q, shown) in
        [(0.50, x.p50_response_time_ms), (0.95, x.p95_response_time_ms), (0.99, x.p99_response_time_ms)]
    {
        let exact = exact(&all, q);
        assert!((shown / exact - 1.0).abs() < 0.0115, "p{q}: {shown} beside {exact}");
    }
    Ok(())
}

#[tokio::test]
async fn the_rollup_of_the_raw_log_is_what_is_read() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    sqlx::query(
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count,
                                    endpoint, method, status_code, response_time_ms, test_mode, late)
         select gen_random_uuid(), $1, (now() at time zone 'UTC')::date, now(), now(), 0, 2, '/v1/x', 'POST',
                case when n % 4 = 0 then 404 else 201 end, n, false, false
         from generate_series(1, 200) as n",
    )
    .bind(ANA)
    .execute(app.pool())
    .await?;
    sqlx::query("select aggregate_daily_usage((now() at time zone 'UTC')::date)").execute(app.pool()).await?;
    let answer = list(&app, &user(ANA)?, own(0, "")).await?.into_inner();
    let [x] = &answer.endpoints[..] else { panic!("one endpoint, not {answer:?}") };
    assert_eq!((x.method.as_str(), x.total_count, x.success_rate), ("POST", 400, 0.75));
    assert!((x.p50_response_time_ms / 100.0 - 1.0).abs() < 0.0115, "{}", x.p50_response_time_ms);
    assert!((x.p99_response_time_ms / 198.0 - 1.0).abs() < 0.0115, "{}", x.p99_response_time_ms);
    Ok(())
}

#[tokio::test]
async fn pages_show_each_endpoint_once_busiest_first_ties_by_name() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    for (route, units) in [("/d", 3), ("/b", 3), ("/a", 1), ("/c", 3), ("/e", 9)] {
        rollup(route, units).insert(app.pool()).await?;
    }
    for method in ["PUT", "DELETE"] {
        Rollup { method, ..rollup("/c", 3) }.insert(app.pool()).await?;
    }
    let expected = ["GET /e", "GET /b", "DELETE /c", "GET /c", "PUT /c", "GET /d", "GET /a"];
    for size in 1..=8 {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let page = list(&app, &user(ANA)?, own(size, &token)).await?.into_inner();
            assert!(page.endpoints.len() <= size as usize);
            assert!(page.endpoints.iter().all(|e| e.p50_response_time_ms > 98.0), "each has its sketch");
            seen.extend(names(&page.endpoints));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, expected, "in pages of {size}");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_has_at_most_fifty_endpoints() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    for n in 0..51 {
        rollup(&format!("/{n:02}"), 1).insert(app.pool()).await?;
    }
    for size in [0, 50, 51, i32::MAX] {
        let page = list(&app, &user(ANA)?, own(size, "")).await?.into_inner();
        assert_eq!(page.endpoints.len(), 50, "asked for {size}");
        let rest = list(&app, &user(ANA)?, own(size, &page.next_page_token)).await?.into_inner();
        assert_eq!(names(&rest.endpoints), ["GET /50"]);
        assert_eq!(rest.next_page_token, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_belongs_to_its_filter() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA, "eco_ben"]).await?;
    for route in ["/a", "/b"] {
        rollup(route, 1).insert(app.pool()).await?;
    }
    let token = list(&app, &admin()?, ListEndpointStatsRequest { eco_id: ANA.to_owned(), ..own(1, "") })
        .await?
        .into_inner()
        .next_page_token;
    let of = |eco_id: &str, days_count, page_token: &str| ListEndpointStatsRequest {
        eco_id: eco_id.to_owned(),
        days_count,
        ..own(1, page_token)
    };
    let other_size = ListEndpointStatsRequest { page_size: 9, ..of(ANA, 7, &token) };
    assert_eq!(names(&list(&app, &admin()?, other_size).await?.into_inner().endpoints), ["GET /b"]);

    let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(&token)?)?;
    let with_nul = URL_SAFE_NO_PAD.encode(decoded.replace("/a", "\\u0000"));
    for bad in [of("eco_ben", 7, &token), of(ANA, 8, &token), of(ANA, 7, "x"), of(ANA, 7, &with_nul)] {
        assert_eq!(fields_at_fault(list(&app, &admin()?, bad).await)?, ["page_token"]);
    }
    Ok(())
}

#[tokio::test]
async fn every_bad_field_is_named() -> Result<()> {
    let app = App::start().await?;
    let bad = ListEndpointStatsRequest { eco_id: "?".to_owned(), days_count: -1, ..own(-1, "") };
    assert_eq!(fields_at_fault(list(&app, &admin()?, bad).await)?, ["eco_id", "days_count", "page_size"]);
    let bad = own(-1, "x");
    assert_eq!(fields_at_fault(list(&app, &user(ANA)?, bad).await)?, ["page_size", "page_token"]);
    Ok(())
}

#[tokio::test]
async fn a_user_sees_the_own_account_only_and_admins_any() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    rollup("/a", 1).insert(app.pool()).await?;
    let anas = || ListEndpointStatsRequest { eco_id: ANA.to_owned(), ..Default::default() };
    for caller in [user(ANA)?, admin()?, bearer(&settings::service_token(&[Scope::Admin])?)?] {
        assert_eq!(names(&list(&app, &caller, anas()).await?.into_inner().endpoints), ["GET /a"]);
    }
    for caller in [user("eco_ben")?, bearer(&settings::service_token(&[Scope::UsageWrite])?)?] {
        assert_refused(list(&app, &caller, anas()).await, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    let unknown = list(&app, &user("eco_ben")?, own(0, "")).await;
    assert_refused(unknown, Code::NotFound, "ACCOUNT_NOT_FOUND")
}
