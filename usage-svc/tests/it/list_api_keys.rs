//! ListApiKeys.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, page};
use nexus_proto::usage::v1::{ApiKeyStatus, ListApiKeysRequest, ListApiKeysResponse};
use tonic::{Code, Status};

use crate::support::*;

async fn list(
    server: &Server,
    options: CallOptions,
    request: ListApiKeysRequest,
) -> Result<Result<ListApiKeysResponse, Status>> {
    Ok(server.client()?.list_api_keys(options.request(request)).await.map(|r| r.into_inner()))
}

fn of(eco_id: &str) -> ListApiKeysRequest {
    ListApiKeysRequest { eco_id: eco_id.to_owned(), ..Default::default() }
}

fn page(page_size: i32, page_token: &str) -> ListApiKeysRequest {
    ListApiKeysRequest { page_size, page_token: page_token.to_owned(), ..Default::default() }
}

fn ids(answer: &ListApiKeysResponse) -> Vec<String> {
    answer.api_keys.iter().map(|key| key.key_id.clone()).collect()
}

#[tokio::test]
async fn keys_come_newest_first_each_once_over_pages_also_those_of_one_instant() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(key_id(&make_key(&server, "eco_a", false).await?));
    }
    make_key(&server, "eco_b", false).await?;
    // Three of one instant, the others before; one of them revoked.
    sqlx::query("update eco_api_keys set created_time = '2026-01-01Z' where key_id = any($1)")
        .bind(&made[4..])
        .execute(&db.pool)
        .await?;
    sqlx::query("update eco_api_keys set created_time = '2025-01-01Z', status = 'revoked' where key_id = $1")
        .bind(&made[0])
        .execute(&db.pool)
        .await?;
    let mut wanted: Vec<String> = made[1..4].iter().rev().cloned().collect();
    let mut tied = made[4..].to_vec();
    tied.sort_unstable_by(|a, b| b.cmp(a));
    wanted.extend(tied);
    wanted.push(made[0].clone());

    let all = list(&server, user("eco_a")?, page(0, "")).await??;
    let (listed, mut sorted) = (ids(&all), ids(&all));
    let mut expected = wanted.clone();
    assert_eq!((listed[..3].to_vec(), &listed[6]), (wanted[..3].to_vec(), &wanted[6]));
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!((sorted, all.next_page_token.as_str()), (expected, ""));
    assert_eq!(all.api_keys[6].status(), ApiKeyStatus::Revoked);
    assert!(all.api_keys.iter().all(|key| key.eco_id == "eco_a" && key.name == "tests"));

    let (mut token, mut paged) = (String::new(), Vec::new());
    loop {
        let answer = list(&server, user("eco_a")?, page(2, &token)).await??;
        assert!((1..=2).contains(&answer.api_keys.len()));
        paged.extend(ids(&answer));
        if paged.len() == 2 {
            // A newer key does not shift the pages that follow.
            make_key(&server, "eco_a", false).await?;
        }
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, listed);
    Ok(())
}

#[tokio::test]
async fn tokens_are_bound_to_the_account_and_sizes_are_checked() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    for _ in 0..2 {
        make_key(&server, "eco_a", false).await?;
    }
    let token = list(&server, user("eco_a")?, page(1, "")).await??.next_page_token;
    let place = |time: DateTime<Utc>, id: &str| page::encode(&"eco_a", &(time, id));
    let newest = key_id(&make_key(&server, "eco_a", false).await?);
    let from_now = page(0, &place(now() + TimeDelta::days(1), &newest));
    assert_eq!(list(&server, user("eco_a")?, from_now).await??.api_keys.len(), 3);
    let bad = [
        (user("eco_b")?, token.clone()),
        (user("eco_a")?, format!("{token}x")),
        // Places that no key has, and the database could not compare with.
        (user("eco_a")?, place(now(), "\0")),
        (user("eco_a")?, place(DateTime::<Utc>::MAX_UTC, &newest)),
    ];
    for (options, token) in bad {
        let status = refused(
            list(&server, options, page(-1, &token)).await?,
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        );
        assert_eq!(fields(&status), ["page_size", "page_token"]);
    }
    assert_eq!(list(&server, user("eco_a")?, page(1_000, &token)).await??.api_keys.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_account_lists_its_own_keys_and_admins_anyones() -> Result<()> {
    let (db, server) = server().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    account(&db, "eco_b", Plan::Pro).await?;
    let made = make_key(&server, "eco_a", false).await?;
    // The same for an account that is there and one that is not.
    for (options, eco_id) in [
        (user("eco_b")?, "eco_a"),
        (user("eco_b")?, "eco_nobody"),
        (service()?, "eco_a"),
        (api_key(&made.key)?, "eco_a"),
        (api_key(&made.key)?, ""),
    ] {
        refused(list(&server, options, of(eco_id)).await?, Code::PermissionDenied, "PERMISSION_DENIED");
    }
    assert!(list(&server, user("eco_b")?, of("")).await??.api_keys.is_empty());
    for options in [user(nexus_testkit::settings::ADMIN)?, with_scopes(&[Scope::AccountsWrite])?] {
        assert_eq!(ids(&list(&server, options, of("eco_a")).await??), [key_id(&made)]);
    }
    let admin = with_scopes(&[Scope::AccountsWrite])?;
    refused(list(&server, admin, of("eco_nobody")).await?, Code::NotFound, "ACCOUNT_NOT_FOUND");
    Ok(())
}
