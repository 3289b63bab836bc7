use anyhow::Result;
use nexus_core::{id::ApiKeyText, plan::Plan};
use nexus_kit::auth::Scope;
use nexus_proto::analytics::v1::{DailyUsage, GetUsageHistoryRequest, GetUsageHistoryResponse};
use nexus_testkit::settings;
use tonic::{Code, Response, Status};

use crate::support::*;

const ANA: &str = "eco_ana";

async fn history(
    app: &App,
    caller: &nexus_client::CallOptions,
    eco_id: &str,
    days_count: i32,
) -> Result<Response<GetUsageHistoryResponse>, Status> {
    let request = GetUsageHistoryRequest { eco_id: eco_id.to_owned(), days_count };
    app.client.clone().get_usage_history(caller.request(request)).await
}

fn rollup(days_ago: i32, route: &'static str, status_class: i16, units: i64) -> Rollup<'static> {
    Rollup { eco_id: ANA, days_ago, route, method: "GET", status_class, units, latencies_ms: &[100] }
}

#[tokio::test]
async fn a_day_adds_up_its_status_classes() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    for (class, units, latencies) in
        [(1, 1, &[10][..]), (2, 20, &[100, 300]), (3, 300, &[20]), (4, 4_000, &[40]), (5, 50_000, &[30])]
    {
        let row = Rollup { latencies_ms: latencies, ..rollup(0, "/v1/x", class, units) };
        row.insert(app.pool()).await?;
    }
    let answer = history(&app, &user(ANA)?, "", 1).await?.into_inner();
    let [
        DailyUsage { date, total_count, successful_count, failed_count, avg_response_time_ms, top_endpoints },
    ] = &answer.days[..]
    else {
        panic!("one day, not {answer:?}")
    };
    assert_eq!(*date, day(app.pool(), 0).await?);
    assert_eq!((*total_count, *successful_count, *failed_count), (54_321, 20, 54_000));
    assert!((avg_response_time_ms - 500.0 / 6.0).abs() < 1e-9, "a mean over calls: {avg_response_time_ms}");
    let [endpoint] = &top_endpoints[..] else { panic!("one endpoint, not {top_endpoints:?}") };
    assert_eq!((endpoint.endpoint.as_str(), endpoint.method.as_str()), ("/v1/x", "GET"));
    assert_eq!(endpoint.calls_count, 54_321);
    assert!((endpoint.avg_response_time_ms - 500.0 / 6.0).abs() < 1e-9);
    Ok(())
}

#[tokio::test]
async fn a_day_shows_its_five_busiest_endpoints_ties_by_name() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA]).await?;
    for (route, units) in [("/f", 5), ("/c", 7), ("/b", 7), ("/e", 6), ("/d", 6), ("/a", 6)] {
        rollup(0, route, 2, units).insert(app.pool()).await?;
    }
    Rollup { method: "DELETE", ..rollup(0, "/c", 4, 7) }.insert(app.pool()).await?;
    let answer = history(&app, &user(ANA)?, ANA, 1).await?.into_inner();
    let top: Vec<_> =
        answer.days[0].top_endpoints.iter().map(|e| format!("{} {}", e.method, e.endpoint)).collect();
    assert_eq!(top, ["GET /b", "DELETE /c", "GET /c", "GET /a", "GET /d"]);
    assert_eq!(answer.days[0].total_count, 44, "the day counts the others too");
    Ok(())
}

#[tokio::test]
async fn only_days_with_usage_are_shown_oldest_first_within_the_window() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA, "eco_ben"]).await?;
    for days_ago in [0, 2, 29, 30, 364, 365] {
        rollup(days_ago, "/v1/x", 2, i64::from(days_ago) + 1).insert(app.pool()).await?;
    }
    Rollup { eco_id: "eco_ben", ..rollup(1, "/v1/x", 2, 1) }.insert(app.pool()).await?;
    for (asked, window, shown) in [
        (0, 30, &[29, 2, 0][..]),
        (1, 1, &[0]),
        (3, 3, &[2, 0]),
        (31, 31, &[30, 29, 2, 0]),
        (365, 365, &[364, 30, 29, 2, 0]),
        (366, 365, &[364, 30, 29, 2, 0]),
        (i32::MAX, 365, &[364, 30, 29, 2, 0]),
    ] {
        let answer = history(&app, &user(ANA)?, "", asked).await?.into_inner();
        assert_eq!(answer.days_count, window, "asked for {asked}");
        let counts: Vec<_> = answer.days.iter().map(|d| d.total_count - 1).collect();
        assert_eq!(counts, shown, "asked for {asked}");
        assert_eq!(answer.days[0].date, day(app.pool(), counts[0] as i32).await?);
    }
    Ok(())
}

#[tokio::test]
async fn an_account_without_usage_has_an_empty_history_and_an_unknown_one_none() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Free, &[ANA]).await?;
    assert_eq!(history(&app, &user(ANA)?, "", 0).await?.into_inner().days, []);
    let unknown = history(&app, &user("eco_nobody")?, "", 0).await;
    assert_refused(unknown, Code::NotFound, "ACCOUNT_NOT_FOUND")
}

#[tokio::test]
async fn every_bad_field_is_named() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Free, &[ANA]).await?;
    assert_eq!(fields_at_fault(history(&app, &user(ANA)?, "", -1).await)?, ["days_count"]);
    assert_eq!(fields_at_fault(history(&app, &admin()?, "ana", -1).await)?, ["eco_id", "days_count"]);
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    assert_eq!(fields_at_fault(history(&app, &service, "", 1).await)?, ["eco_id"]);
    Ok(())
}

#[tokio::test]
async fn a_user_sees_the_own_account_only_and_admins_any() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &[ANA, "eco_ben", settings::ADMIN]).await?;
    rollup(0, "/v1/x", 2, 7).insert(app.pool()).await?;
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    for caller in [user(ANA)?, admin()?, service] {
        assert_eq!(history(&app, &caller, ANA, 0).await?.into_inner().days[0].total_count, 7);
    }
    assert_eq!(history(&app, &admin()?, "", 0).await?.into_inner().days, [], "an admin's own account");

    let other_scopes: Vec<_> = Scope::ALL.into_iter().filter(|s| *s != Scope::Admin).collect();
    let key = ApiKeyText::derive(b"tests", &ANA.to_owned().try_into()?, uuid::Uuid::nil());
    let key = nexus_client::CallOptions::new(
        &format!("ApiKey {}", key.expose()),
        std::time::Duration::from_secs(20),
    )?;
    for caller in [user("eco_ben")?, bearer(&settings::service_token(&other_scopes)?)?, key] {
        assert_refused(history(&app, &caller, ANA, 0).await, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    let stranger = bearer("not a token")?;
    assert_refused(history(&app, &stranger, ANA, 0).await, Code::Unauthenticated, "UNAUTHENTICATED")
}

#[tokio::test]
async fn without_its_database_the_service_is_unavailable() -> Result<()> {
    let nowhere = nexus_kit::config::DbArgs {
        database_url: "postgres://nobody@127.0.0.1:1/none".to_owned().into(),
        database_max_connections: 2,
    };
    let (mut client, _stop) = serve(nowhere).await?;
    let call = client.get_usage_history(user(ANA)?.request(GetUsageHistoryRequest::default())).await;
    let refused = refusal(call)?;
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(nexus_kit::status::reason(&refused), "DATABASE_UNAVAILABLE");
    let details = tonic_types::StatusExt::get_error_details(&refused);
    assert!(details.retry_info().is_some_and(|r| r.retry_delay.is_some()), "{refused:?}");
    Ok(())
}
