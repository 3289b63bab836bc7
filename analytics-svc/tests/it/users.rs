use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, convert};
use nexus_proto::{
    analytics::v1::{ListUsersRequest, ListUsersResponse, User, UserSort},
    common::v1::{Plan as PbPlan, SubscriptionStatus as PbStatus},
};
use nexus_testkit::settings;
use tonic::{Code, Response, Status};

use crate::support::*;

const DOLLAR: i64 = 1_000_000;

async fn call(app: &App, request: ListUsersRequest) -> Result<Response<ListUsersResponse>, Status> {
    let admin = admin().map_err(|e| Status::internal(e.to_string()))?;
    app.client.clone().list_users(admin.request(request)).await
}

async fn list(app: &App, request: ListUsersRequest) -> Result<ListUsersResponse> {
    Ok(call(app, request).await?.into_inner())
}

fn ids(answer: &ListUsersResponse) -> Vec<&str> {
    answer.users.iter().map(|u| u.eco_id.as_str()).collect()
}

fn all() -> ListUsersRequest {
    ListUsersRequest::default()
}

/// Accounts whose order differs by every sort, with ties in each; the figures of some are ready, others are new or have
/// changed.
async fn seed(app: &App) -> Result<()> {
    let pool = app.pool();
    for (eco_id, plan, api_calls, overage_units, overage_micros, created) in [
        ("eco_a", Plan::Enterprise, 50, 0, 0, "2026-01-03T00:00:00Z"),
        ("eco_b", Plan::Pro, 300, 200, 200_000, "2026-01-02T00:00:00Z"),
        ("eco_c", Plan::Pro, 300, 200, 200_000, "2026-01-04T00:00:00.000001Z"),
        ("eco_d", Plan::Free, 400, 0, 0, "2026-01-04T00:00:00Z"),
        ("eco_e", Plan::Pro, 50, 1, 900 * DOLLAR, "2026-01-03T00:00:00Z"),
    ] {
        accounts(pool, plan, &[eco_id]).await?;
        sqlx::query("update eco_identities set created_time = $2::text::timestamptz where eco_id = $1")
            .bind(eco_id)
            .bind(created)
            .execute(pool)
            .await?;
        Summary { eco_id, months_ago: 0, api_calls, overage_units, overage_micros }.insert(pool).await?;
    }
    compute_figures(pool).await?;
    sqlx::query("insert into eco_account_changes (eco_id) values ('eco_c')").execute(pool).await?;
    sqlx::query("update eco_account_figures set valid_until = now() where eco_id = 'eco_e'")
        .execute(pool)
        .await?;
    accounts(pool, Plan::Free, &["eco_f", "eco_g"]).await?;
    sqlx::query("update eco_identities set created_time = '2026-01-01Z' where eco_id in ('eco_f', 'eco_g')")
        .execute(pool)
        .await?;
    Ok(())
}

const ORDERS: [(UserSort, [&str; 7]); 5] = [
    (UserSort::Unspecified, ["eco_d", "eco_b", "eco_c", "eco_a", "eco_e", "eco_f", "eco_g"]),
    (UserSort::Usage, ["eco_d", "eco_b", "eco_c", "eco_a", "eco_e", "eco_f", "eco_g"]),
    (UserSort::Overage, ["eco_b", "eco_c", "eco_e", "eco_a", "eco_d", "eco_f", "eco_g"]),
    (UserSort::Revenue, ["eco_e", "eco_a", "eco_b", "eco_c", "eco_d", "eco_f", "eco_g"]),
    (UserSort::Created, ["eco_c", "eco_d", "eco_a", "eco_e", "eco_b", "eco_f", "eco_g"]),
];

#[tokio::test]
async fn an_account_shows_usage_and_revenue_of_its_current_period() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Pro, &["eco_a"]).await?;
    for (months_ago, api_calls) in [(0, 105_000), (1, 999_000)] {
        let overage_units = api_calls - 100_000;
        Summary {
            eco_id: "eco_a",
            months_ago,
            api_calls,
            overage_units,
            overage_micros: overage_units * 1_000,
        }
        .insert(pool)
        .await?;
    }
    let (created, last): (chrono::DateTime<chrono::Utc>, chrono::DateTime<chrono::Utc>) = sqlx::query_as(
        "select created_time, max(last_event_time) from eco_identities join eco_usage_records using (eco_id)
         group by created_time",
    )
    .fetch_one(pool)
    .await?;
    let answer = list(&app, all()).await?;
    let expected = User {
        eco_id: "eco_a".to_owned(),
        email: "eco_a@example.com".to_owned(),
        plan: PbPlan::Pro.into(),
        status: PbStatus::Active.into(),
        api_calls_count: 105_000,
        overage_count: 5_000,
        overage_cost_micros: 5 * DOLLAR,
        subscription_revenue_micros: 49 * DOLLAR,
        total_revenue_micros: 54 * DOLLAR,
        currency_code: "USD".to_owned(),
        create_time: Some(convert::timestamp(created)),
        last_api_call_time: Some(convert::timestamp(last)),
    };
    assert_eq!((answer.users, answer.total_size), (vec![expected], 1));
    Ok(())
}

#[tokio::test]
async fn an_account_without_usage_shows_zeros() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    accounts(pool, Plan::Free, &["eco_a"]).await?;
    sqlx::query("update eco_identities set email = null").execute(pool).await?;
    Summary { eco_id: "eco_a", months_ago: 1, api_calls: 9, overage_units: 8, overage_micros: 7 }
        .insert(pool)
        .await?;
    let answer = list(&app, all()).await?;
    let [a] = &answer.users[..] else { panic!("one account, not {answer:?}") };
    assert_eq!(a.email, "");
    assert_eq!((a.api_calls_count, a.overage_count, a.overage_cost_micros), (0, 0, 0));
    assert_eq!((a.subscription_revenue_micros, a.total_revenue_micros), (0, 0));
    assert_eq!(a.last_api_call_time, None);
    assert!(a.create_time.is_some());
    Ok(())
}

#[tokio::test]
async fn only_active_and_past_due_subscriptions_bring_revenue() -> Result<()> {
    let app = App::start().await?;
    accounts(app.pool(), Plan::Pro, &["eco_a"]).await?;
    Summary { eco_id: "eco_a", months_ago: 0, api_calls: 100_001, overage_units: 1, overage_micros: 1_000 }
        .insert(app.pool())
        .await?;
    for (status, subscription) in
        [("trialing", 0), ("active", 49 * DOLLAR), ("past_due", 49 * DOLLAR), ("unpaid", 0), ("canceled", 0)]
    {
        set_status(app.pool(), "eco_a", status).await?;
        let answer = list(&app, all()).await?;
        assert_eq!(answer.users[0].subscription_revenue_micros, subscription, "{status}");
        assert_eq!(answer.users[0].total_revenue_micros, subscription + 1_000, "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn every_order_is_descending_with_ties_by_id_on_pages_of_any_size() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    for (sort, expected) in ORDERS {
        for size in 1..=8 {
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let request =
                    ListUsersRequest { sort: sort.into(), page_size: size, page_token: token, ..all() };
                let page = list(&app, request).await?;
                assert!(page.users.len() <= size as usize);
                assert_eq!(page.total_size, 7, "whatever the page");
                seen.extend(page.users.into_iter().map(|u| u.eco_id));
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(seen, expected, "{sort:?} in pages of {size}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn numbered_pages_skip_rows() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    for (skip_count, shown) in
        [(0, &["eco_d", "eco_b"][..]), (2, &["eco_c", "eco_a"]), (6, &["eco_g"]), (7, &[])]
    {
        let answer = list(&app, ListUsersRequest { skip_count, page_size: 2, ..all() }).await?;
        assert_eq!(ids(&answer), shown, "after {skip_count}");
        assert_eq!(answer.total_size, 7);
        assert_eq!(answer.next_page_token.is_empty(), skip_count >= 5, "after {skip_count}");
    }
    Ok(())
}

/// Accounts are made, figures computed and usage comes in between the pages: each of the old ones comes once, in order.
#[tokio::test]
async fn pages_by_creation_show_old_accounts_once_while_new_ones_come() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    seed(&app).await?;
    let names: Vec<_> = (0..40).map(|n| format!("eco_old_{n:02}")).collect();
    accounts(pool, Plan::Free, &names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    // Four at a time have the same time.
    sqlx::query(
        "update eco_identities set created_time = '2026-02-01Z'::timestamptz + interval '1 hour' * (right(eco_id, 2)::int / 4)
         where eco_id like 'eco_old_%'",
    )
    .execute(pool)
    .await?;
    let old: Vec<String> =
        sqlx::query_scalar("select eco_id from eco_identities order by created_time desc, eco_id")
            .fetch_all(pool)
            .await?;
    let (mut shown, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListUsersRequest { sort: UserSort::Created.into(), page_size: 3, page_token, ..all() };
        let page = list(&app, request).await?;
        shown.extend(page.users.iter().map(|u| u.eco_id.clone()).filter(|id| !id.starts_with("eco_new")));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        pages += 1;
        accounts(pool, Plan::Free, &[&format!("eco_new_{pages}")]).await?;
        usage(pool, &format!("eco_old_{pages:02}"), 1_000 + pages).await?;
        if pages % 3 == 0 {
            compute_figures(pool).await?;
        }
    }
    assert!(pages >= 15, "{pages}");
    assert_eq!(shown, old);
    Ok(())
}

#[tokio::test]
async fn filters_narrow_the_list_and_its_size() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    let pool = app.pool();
    set_status(pool, "eco_b", "past_due").await?;
    accounts(pool, Plan::Pro, &["eco_closed"]).await?;
    close(pool, "eco_closed").await?;
    accounts(pool, Plan::Free, &["eco_z_1", "eco_zx1"]).await?;
    for (eco_id, email) in [("eco_a", "Mia@x.org"), ("eco_b", "50%off@x.org"), ("eco_c", "500@x.org")] {
        let update = "update eco_identities set email = $2 where eco_id = $1";
        sqlx::query(update).bind(eco_id).bind(email).execute(pool).await?;
    }
    let plan = |p: PbPlan| ListUsersRequest { plan: p.into(), ..all() };
    let status = |s: PbStatus| ListUsersRequest { status: s.into(), ..all() };
    let query = |q: &str| ListUsersRequest { query: q.to_owned(), ..all() };
    for (request, shown) in [
        (plan(PbPlan::Pro), &["eco_b", "eco_c", "eco_e"][..]),
        (plan(PbPlan::Enterprise), &["eco_a"]),
        (status(PbStatus::PastDue), &["eco_b"]),
        (status(PbStatus::Canceled), &[]),
        (ListUsersRequest { status: PbStatus::Active.into(), ..plan(PbPlan::Pro) }, &["eco_c", "eco_e"]),
        (query("eco_d"), &["eco_d"]),
        (query("ECO_D@"), &["eco_d"]),
        (query("d"), &[]),
        (query("mIa@"), &["eco_a"]),
        (query("50"), &["eco_b", "eco_c"]),
        (query("50%"), &["eco_b"]),
        (query("eco_z_"), &["eco_z_1"]),
        (query("eco_z\\"), &[]),
        (query("eco_closed"), &[]),
    ] {
        let answer = list(&app, request.clone()).await?;
        assert_eq!(ids(&answer), shown, "{request:?}");
        assert_eq!(answer.total_size, shown.len() as i64, "{request:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_has_fifty_accounts_and_at_most_a_hundred() -> Result<()> {
    let app = App::start().await?;
    let names: Vec<_> = (0..101).map(|n| format!("eco_{n:03}")).collect();
    accounts(app.pool(), Plan::Free, &names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    for (page_size, shown) in [(0, 50), (99, 99), (100, 100), (101, 100), (i32::MAX, 100)] {
        let answer = list(&app, ListUsersRequest { page_size, ..all() }).await?;
        assert_eq!(answer.users.len(), shown, "asked for {page_size}");
        assert_eq!(answer.total_size, 101);
    }
    Ok(())
}

#[tokio::test]
async fn a_token_belongs_to_its_filter_and_order() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    let page_token = list(&app, ListUsersRequest { page_size: 1, ..all() }).await?.next_page_token;
    let same = || ListUsersRequest { page_token: page_token.clone(), page_size: 1, ..all() };
    assert_eq!(ids(&list(&app, same()).await?), ["eco_b"]);
    let by_usage = ListUsersRequest { sort: UserSort::Usage.into(), ..same() };
    assert_eq!(ids(&list(&app, by_usage).await?), ["eco_b"], "the default order by its name");
    for other in [
        ListUsersRequest { plan: PbPlan::Pro.into(), ..same() },
        ListUsersRequest { status: PbStatus::Active.into(), ..same() },
        ListUsersRequest { query: "eco".to_owned(), ..same() },
        ListUsersRequest { sort: UserSort::Created.into(), ..same() },
        ListUsersRequest { page_token: page_token.replace('W', "X"), ..same() },
    ] {
        assert_eq!(fields_at_fault(call(&app, other).await)?, ["page_token"]);
    }
    Ok(())
}

#[tokio::test]
async fn every_bad_field_is_named() -> Result<()> {
    let app = App::start().await?;
    let bad = ListUsersRequest {
        plan: 99,
        status: -1,
        query: "a\0".to_owned(),
        sort: 5,
        page_size: -1,
        page_token: String::new(),
        skip_count: -1,
    };
    let fields = fields_at_fault(call(&app, bad).await)?;
    assert_eq!(fields, ["plan", "status", "query", "sort", "page_size", "skip_count"]);
    let both = ListUsersRequest { page_token: "x".to_owned(), skip_count: 1, ..all() };
    assert_eq!(fields_at_fault(call(&app, both).await)?, ["skip_count", "page_token"]);
    let long = ListUsersRequest { query: "x".repeat(321), ..all() };
    assert_eq!(fields_at_fault(call(&app, long).await)?, ["query"]);
    Ok(())
}

#[tokio::test]
async fn it_is_for_admins() -> Result<()> {
    let app = App::start().await?;
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    app.client.clone().list_users(service.request(all())).await.context("a service with the scope admin")?;
    for caller in [user("eco_a")?, bearer(&settings::service_token(&[Scope::AccountsWrite])?)?] {
        let call = app.client.clone().list_users(caller.request(all())).await;
        assert_refused(call, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    Ok(())
}

/// Where there are many accounts, each order is read from its index.
#[tokio::test]
async fn every_order_has_an_index_of_its_own() -> Result<()> {
    let app = App::start().await?;
    let pool = app.pool();
    sqlx::raw_sql(
        "insert into eco_identities (eco_id) select 'eco_' || n from generate_series(1, 20000) n;
         insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time)
         select eco_id, 'pro', 1, 'active', now() - interval '40 days' from eco_identities;",
    )
    .execute(pool)
    .await?;
    compute_figures(pool).await?;
    for statement in ["vacuum analyze eco_account_figures", "vacuum analyze eco_account_changes"] {
        sqlx::query(statement).execute(pool).await?;
    }
    for (sort, index) in [
        (UserSort::Usage, "eco_account_figures_by_usage"),
        (UserSort::Overage, "eco_account_figures_by_overage"),
        (UserSort::Revenue, "eco_account_figures_by_revenue"),
        (UserSort::Created, "eco_account_figures_by_created"),
    ] {
        let read = "select idx_scan > 0 and idx_tup_read <= 200 * idx_scan from pg_stat_user_indexes where indexrelname = $1";
        // The server tells its statistics once a second at most, at the end of a transaction.
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while !sqlx::query_scalar::<_, bool>(read).bind(index).fetch_one(pool).await? {
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "{sort:?} does not use {index}");
            let page = list(&app, ListUsersRequest { sort: sort.into(), page_size: 100, ..all() }).await?;
            assert_eq!((page.users.len(), page.total_size), (100, 20_000));
        }
    }
    Ok(())
}
