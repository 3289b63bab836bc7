use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::analytics::v1::{
    DailyUsage, GetTotalUsageHistoryRequest, GetTotalUsageHistoryResponse, GetUsageHistoryRequest,
};
use nexus_testkit::settings;
use tonic::{Code, Response, Status};

use crate::support::*;

async fn history(
    app: &App,
    caller: &nexus_client::CallOptions,
    days_count: i32,
) -> Result<Response<GetTotalUsageHistoryResponse>, Status> {
    let request = GetTotalUsageHistoryRequest { days_count };
    app.client.clone().get_total_usage_history(caller.request(request)).await
}

/// Sums of some accounts over some days, in two slots as two writers would leave them.
async fn seed(app: &App) -> Result<()> {
    accounts(app.pool(), Plan::Pro, &["eco_a", "eco_b"]).await?;
    for (eco_id, days_ago, status_class, units, latencies_ms) in [
        ("eco_a", 0, 2, 20, &[100, 300][..]),
        ("eco_b", 0, 4, 4_000, &[50]),
        ("eco_b", 0, 3, 300, &[50]),
        ("eco_a", 29, 5, 7, &[10]),
        ("eco_b", 29, 2, 1, &[20]),
        ("eco_a", 30, 2, 9, &[10]),
        ("eco_b", 364, 2, 5, &[10]),
        ("eco_b", 365, 2, 6, &[10]),
    ] {
        Rollup { eco_id, days_ago, route: "/v1/x", method: "GET", status_class, units, latencies_ms }
            .insert(app.pool())
            .await?;
    }
    sqlx::raw_sql(
        "insert into eco_usage_totals
         select day, hashtext(eco_id) & 1, sum(units_count), coalesce(sum(units_count) filter (where status_class = 2), 0),
                coalesce(sum(units_count) filter (where status_class >= 4), 0), sum(event_count), sum(latency_sum_ms)
         from eco_usage_daily group by 1, 2",
    )
    .execute(app.pool())
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_day_is_what_all_accounts_used_and_the_window_ends_today() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    let answer = history(&app, &admin()?, 1).await?.into_inner();
    let today = DailyUsage {
        date: day(app.pool(), 0).await?,
        total_count: 4_320,
        successful_count: 20,
        failed_count: 4_000,
        avg_response_time_ms: 125.0,
        top_endpoints: Vec::new(),
    };
    assert_eq!(answer, GetTotalUsageHistoryResponse { days: vec![today.clone()], days_count: 1 });

    for (asked, window, shown) in
        [(0, 30, &[8, 4_320][..]), (31, 31, &[9, 8, 4_320]), (i32::MAX, 365, &[5, 9, 8, 4_320])]
    {
        let answer = history(&app, &admin()?, asked).await?.into_inner();
        let counts: Vec<_> = answer.days.iter().map(|day| day.total_count).collect();
        assert_eq!((answer.days_count, counts.as_slice()), (window, shown), "asked for {asked}");
        assert_eq!(answer.days.last(), Some(&today), "asked for {asked}");
    }
    assert_eq!(fields_at_fault(history(&app, &admin()?, -1).await)?, ["days_count"]);
    Ok(())
}

/// What each account is told of itself adds up to what admins are told of all.
#[tokio::test]
async fn it_is_the_sum_of_the_accounts_histories() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    let mut own = 0;
    for eco_id in ["eco_a", "eco_b"] {
        let request = GetUsageHistoryRequest { eco_id: String::new(), days_count: 365 };
        let answer = app.client.clone().get_usage_history(user(eco_id)?.request(request)).await?.into_inner();
        own += answer.days.iter().map(|day| day.total_count).sum::<i64>();
    }
    let all = history(&app, &admin()?, 365).await?.into_inner();
    assert_eq!(all.days.iter().map(|day| day.total_count).sum::<i64>(), own);
    Ok(())
}

#[tokio::test]
async fn what_was_counted_before_there_were_totals_is_in_them() -> Result<()> {
    let db = database_before(50).await?;
    for (eco_id, status_class, units) in [("eco_a", 2, 5), ("eco_b", 2, 30), ("eco_b", 5, 100)] {
        let latencies_ms = &[10][..];
        Rollup { eco_id, days_ago: 0, route: "/v1/x", method: "GET", status_class, units, latencies_ms }
            .insert(&db.pool)
            .await?;
    }
    migrate(&db).await?;
    let app = App::on(db).await?;
    let days = history(&app, &admin()?, 0).await?.into_inner().days;
    let counts: Vec<_> =
        days.iter().map(|day| (day.total_count, day.successful_count, day.failed_count)).collect();
    assert_eq!(counts, [(135, 35, 100)]);
    Ok(())
}

#[tokio::test]
async fn only_admins_and_services_of_that_scope_are_told() -> Result<()> {
    let app = App::start().await?;
    assert_eq!(history(&app, &admin()?, 0).await?.into_inner().days, []);
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    assert_eq!(history(&app, &service, 0).await?.into_inner().days_count, 30);
    let other_scopes: Vec<_> = Scope::ALL.into_iter().filter(|scope| *scope != Scope::Admin).collect();
    for caller in [user("eco_a")?, bearer(&settings::service_token(&other_scopes)?)?] {
        assert_refused(history(&app, &caller, 0).await, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    assert_refused(history(&app, &bearer("not a token")?, 0).await, Code::Unauthenticated, "UNAUTHENTICATED")
}
