use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_kit::auth::Scope;
use nexus_proto::{
    analytics::v1::{ListTopUsersRequest, ListTopUsersResponse, ListUsersRequest, TopUser},
    common::v1::Plan as PbPlan,
};
use nexus_testkit::settings;
use tonic::{Code, Response, Status};

use crate::support::*;

async fn call(app: &App, request: ListTopUsersRequest) -> Result<Response<ListTopUsersResponse>, Status> {
    let admin = admin().map_err(|e| Status::internal(e.to_string()))?;
    app.client.clone().list_top_users(admin.request(request)).await
}

async fn top(app: &App, page_size: i32, page_token: &str) -> Result<ListTopUsersResponse> {
    let request = ListTopUsersRequest { page_size, page_token: page_token.to_owned() };
    Ok(call(app, request).await?.into_inner())
}

fn ids(answer: &ListTopUsersResponse) -> Vec<&str> {
    answer.users.iter().map(|u| u.eco_id.as_str()).collect()
}

/// Seven with usage, ties among them, and one without; of some the figures are ready, of others not.
async fn seed(app: &App) -> Result<()> {
    let pool = app.pool();
    for (eco_id, api_calls) in [("eco_g", 9), ("eco_b", 50), ("eco_a", 50), ("eco_c", 70)] {
        accounts(pool, Plan::Pro, &[eco_id]).await?;
        usage(pool, eco_id, api_calls).await?;
    }
    accounts(pool, Plan::Free, &["eco_0"]).await?;
    compute_figures(pool).await?;
    for (eco_id, api_calls) in [("eco_d", 50), ("eco_e", 1), ("eco_f", 80)] {
        accounts(pool, Plan::Enterprise, &[eco_id]).await?;
        usage(pool, eco_id, api_calls).await?;
    }
    Ok(())
}

const ORDER: [&str; 7] = ["eco_f", "eco_c", "eco_a", "eco_b", "eco_d", "eco_g", "eco_e"];

#[tokio::test]
async fn the_busiest_come_first_five_unless_asked_for_more() -> Result<()> {
    let app = App::start().await?;
    assert_eq!(top(&app, 0, "").await?, ListTopUsersResponse::default(), "nobody has called anything");
    seed(&app).await?;
    let five = top(&app, 0, "").await?;
    assert_eq!(ids(&five), ORDER[..5]);
    let first = TopUser { eco_id: "eco_f".to_owned(), api_calls_count: 80, plan: PbPlan::Enterprise.into() };
    assert_eq!(five.users[0], first);
    let all = top(&app, i32::MAX, "").await?;
    assert_eq!((ids(&all), all.next_page_token.as_str()), (ORDER.to_vec(), ""), "none without usage");
    Ok(())
}

#[tokio::test]
async fn pages_of_any_size_show_each_once() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    for size in 1..=8 {
        let (mut shown, mut token) = (Vec::new(), String::new());
        loop {
            let page = top(&app, size, &token).await?;
            assert!(page.users.len() <= size as usize);
            shown.extend(page.users.into_iter().map(|u| u.eco_id));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(shown, ORDER, "pages of {size}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_of_another_list_is_refused() -> Result<()> {
    let app = App::start().await?;
    seed(&app).await?;
    let users = ListUsersRequest { page_size: 1, ..Default::default() };
    let users = app.client.clone().list_users(admin()?.request(users)).await?.into_inner();
    for page_token in [users.next_page_token, "x".to_owned()] {
        let bad = ListTopUsersRequest { page_size: -1, page_token };
        assert_eq!(fields_at_fault(call(&app, bad).await)?, ["page_size", "page_token"]);
    }
    Ok(())
}

#[tokio::test]
async fn it_is_for_admins() -> Result<()> {
    let app = App::start().await?;
    let service = bearer(&settings::service_token(&[Scope::Admin])?)?;
    app.client.clone().list_top_users(service.request(ListTopUsersRequest::default())).await?;
    for caller in [user("eco_a")?, bearer(&settings::service_token(&[Scope::BillingRun])?)?] {
        let call = app.client.clone().list_top_users(caller.request(ListTopUsersRequest::default())).await;
        assert_refused(call, Code::PermissionDenied, "PERMISSION_DENIED")?;
    }
    Ok(())
}
