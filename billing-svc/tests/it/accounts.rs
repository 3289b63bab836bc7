//! Accounts and plans.

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_kit::{convert::timestamp, status};
use nexus_proto::{billing::v1::*, common::v1::Plan};
use nexus_testkit::db::TestDb;
use tonic::{Code, Status};

use crate::support::{Billing, Sim, fields, manager, runner, user};

const NO_STRIPE: &str = "http://127.0.0.1:9/";

async fn create(billing: &Billing, request: CreateAccountRequest) -> Result<Result<Account, Status>> {
    let answer = billing.client.clone().create_account(manager()?.request(request)).await;
    match answer {
        Ok(response) => Ok(Ok(response.into_inner().account.context("an account")?)),
        Err(status) => Ok(Err(status)),
    }
}

#[tokio::test]
async fn an_account_gets_the_newest_version_of_its_plan_and_can_be_read() -> Result<()> {
    let db = TestDb::new().await?;
    sqlx::query(
        "insert into eco_plans (plan, version, included_units, hard_limit) values ('pro', 2, 200000, false)",
    )
    .execute(&db.pool)
    .await?;
    sqlx::query("insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros) values ('pro', 2, 'EUR', 49000000, 1000)")
        .execute(&db.pool)
        .await?;
    let sim = Sim::start().await?;
    let billing = Billing::start(&db, &sim.base).await?;
    let anchor = Utc::now() - TimeDelta::days(40);
    let request = CreateAccountRequest {
        eco_id: "eco_new".into(),
        email: "a@example.com".into(),
        plan: Plan::Pro.into(),
        stripe_customer_id: sim.customer().await?,
        billing_anchor_time: Some(timestamp(anchor)),
        currency_code: "eur".into(),
        ..Default::default()
    };
    let created = create(&billing, request).await??;
    assert_eq!(created.currency_code, "EUR");
    assert_eq!(created.plan(), Plan::Pro);
    assert_eq!(created.status(), AccountStatus::Active);
    let version: i32 =
        sqlx::query_scalar("select plan_version from eco_subscriptions where eco_id = 'eco_new'")
            .fetch_one(&db.pool)
            .await?;
    assert_eq!(version, 2);

    let get = GetAccountRequest { eco_id: "eco_new".into() };
    let read = billing.client.clone().get_account(manager()?.request(get)).await?.into_inner();
    assert_eq!(read.account, Some(created.clone()));
    let own =
        billing.client.clone().get_account(user("eco_new")?.request(GetAccountRequest::default())).await?;
    assert_eq!(own.into_inner().account, Some(created));
    let other = GetAccountRequest { eco_id: "eco_new".into() };
    let refused = billing.client.clone().get_account(user("eco_x")?.request(other)).await;
    assert_eq!(refused.map(|_| ()).map_err(|s| s.code()), Err(Code::PermissionDenied));
    let unknown = GetAccountRequest { eco_id: "eco_nobody".into() };
    let missing =
        billing.client.clone().get_account(manager()?.request(unknown)).await.err().context("an error")?;
    assert_eq!((missing.code(), status::reason(&missing).as_str()), (Code::NotFound, "ACCOUNT_NOT_FOUND"));
    billing.stop().await
}

#[tokio::test]
async fn defaults_are_a_random_id_free_and_dollars() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    let one = create(&billing, CreateAccountRequest::default()).await??;
    let two = create(&billing, CreateAccountRequest::default()).await??;
    assert_ne!(one.eco_id, two.eco_id);
    assert_eq!((one.plan(), one.currency_code.as_str()), (Plan::Free, "USD"));
    assert_eq!(one.billing_anchor_time, one.create_time);
    billing.stop().await
}

#[tokio::test]
async fn a_repeated_request_returns_the_account_and_another_one_is_refused() -> Result<()> {
    let db = TestDb::new().await?;
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let billing = Billing::start(&db, &sim.base).await?;
    let request = |request_id: &str| CreateAccountRequest {
        eco_id: "eco_a".into(),
        stripe_customer_id: customer.clone(),
        request_id: request_id.into(),
        ..Default::default()
    };
    let id = "7f5cbd0c-0d4c-4f6f-9c41-6a2f0f8d7a10";
    // All at once: one creates, the others get what it created.
    let attempts = (0..8).map(|_| create(&billing, request(id)));
    let mut accounts = Vec::new();
    for attempt in futures::future::join_all(attempts).await {
        accounts.push(attempt??);
    }
    assert!(accounts.iter().all(|a| *a == accounts[0]));
    assert_eq!(create(&billing, request(id)).await??, accounts[0]);

    for request_id in ["", "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00"] {
        let refused = create(&billing, request(request_id)).await?.err().context("an error")?;
        assert_eq!(
            (refused.code(), status::reason(&refused).as_str()),
            (Code::AlreadyExists, "ACCOUNT_EXISTS")
        );
    }
    let thief = CreateAccountRequest { eco_id: "eco_b".into(), ..request("") };
    let refused = create(&billing, thief).await?.err().context("an error")?;
    assert_eq!((refused.code(), status::reason(&refused).as_str()), (Code::AlreadyExists, "STRIPE_ID_TAKEN"));
    let rows: i64 = sqlx::query_scalar("select count(*) from eco_identities").fetch_one(&db.pool).await?;
    assert_eq!(rows, 1, "a refused creation leaves nothing behind");
    billing.stop().await
}

#[tokio::test]
async fn every_field_at_fault_is_named_at_once() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    let request = CreateAccountRequest {
        eco_id: "acct".into(),
        email: "nobody".into(),
        plan: 77,
        stripe_customer_id: "cus 1".into(),
        stripe_subscription_id: "sub/1".into(),
        billing_anchor_time: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
        currency_code: "dollar".into(),
        request_id: "1".into(),
    };
    let refused = create(&billing, request).await?.err().context("an error")?;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        fields(&refused),
        [
            "eco_id",
            "email",
            "plan",
            "stripe_customer_id",
            "stripe_subscription_id",
            "billing_anchor_time",
            "currency_code",
            "request_id"
        ]
    );
    let request = CreateAccountRequest {
        billing_anchor_time: Some(timestamp(Utc::now() + TimeDelta::days(1))),
        currency_code: "EUR".into(),
        ..Default::default()
    };
    let refused = create(&billing, request).await?.err().context("an error")?;
    assert_eq!(fields(&refused), ["currency_code", "billing_anchor_time"]);
    let as_user =
        billing.client.clone().create_account(user("eco_u")?.request(CreateAccountRequest::default())).await;
    assert_eq!(as_user.map(|_| ()).map_err(|s| s.code()), Err(Code::PermissionDenied));
    billing.stop().await
}

#[tokio::test]
async fn accounts_are_listed_once_each_newest_first() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    for i in 0..7 {
        let plan = if i % 2 == 0 { Plan::Pro } else { Plan::Free };
        let request =
            CreateAccountRequest { eco_id: format!("eco_{i}"), plan: plan.into(), ..Default::default() };
        create(&billing, request).await??;
    }
    // Accounts of the same instant keep an order, too. An instant long ago: of today, it might be after the others'.
    sqlx::query("update eco_identities set created_time = '2020-01-01Z' where eco_id < 'eco_4'")
        .execute(&db.pool)
        .await?;
    let mut seen = Vec::new();
    let mut request = ListAccountsRequest { page_size: 2, ..Default::default() };
    loop {
        let page =
            billing.client.clone().list_accounts(manager()?.request(request.clone())).await?.into_inner();
        seen.extend(page.accounts.into_iter().map(|a| a.eco_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        let late = CreateAccountRequest { eco_id: format!("eco_late{}", seen.len()), ..Default::default() };
        create(&billing, late).await??;
    }
    assert_eq!(seen, ["eco_6", "eco_5", "eco_4", "eco_0", "eco_1", "eco_2", "eco_3"]);

    let pro = ListAccountsRequest { plan: Plan::Pro.into(), ..Default::default() };
    let page = billing.client.clone().list_accounts(manager()?.request(pro)).await?.into_inner();
    let ids: Vec<_> = page.accounts.into_iter().map(|a| a.eco_id).collect();
    assert_eq!(ids, ["eco_6", "eco_4", "eco_0", "eco_2"]);
    let other_filter = ListAccountsRequest { plan: Plan::Pro.into(), page_size: -1, ..request };
    let refused = billing.client.clone().list_accounts(manager()?.request(other_filter)).await;
    assert_eq!(fields(&refused.err().context("an error")?), ["page_size", "page_token"]);
    billing.stop().await
}

/// A token is text from outside, whoever made it: what no row has is the caller's fault.
#[tokio::test]
async fn a_token_that_names_an_impossible_place_is_a_bad_token() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    create(&billing, CreateAccountRequest { eco_id: "eco_a".into(), ..Default::default() }).await??;
    let (long_ago, now) = ("-200000-01-01T00:00:00Z", Utc::now().to_rfc3339());
    for cursor in [(long_ago, "eco_a"), (&now, "eco_\0"), (&now, "")] {
        let page_token = nexus_kit::page::encode(&None::<nexus_core::plan::Plan>, &cursor);
        let request = ListAccountsRequest { page_token, ..Default::default() };
        let refused = billing.client.clone().list_accounts(manager()?.request(request)).await;
        assert_eq!(fields(&refused.err().context("an error")?), ["page_token"], "{cursor:?}");
    }
    let page_token = nexus_kit::page::encode(&"eco_a", &(long_ago, uuid::Uuid::nil(), 1));
    let request = ListChargesRequest { eco_id: "eco_a".into(), page_token, ..Default::default() };
    let refused = billing.client.clone().list_charges(user("eco_a")?.request(request.clone())).await;
    assert_eq!(fields(&refused.err().context("an error")?), ["page_token"]);
    // Who may see any account is told of its id together with the rest.
    for (eco_id, expected) in
        [("eco_a", vec!["page_size", "page_token"]), ("acct", vec!["eco_id", "page_size"])]
    {
        let request = ListChargesRequest { eco_id: eco_id.into(), page_size: -1, ..request.clone() };
        let refused = billing.client.clone().list_charges(runner()?.request(request)).await;
        assert_eq!(fields(&refused.err().context("an error")?), expected);
    }
    billing.stop().await
}

#[tokio::test]
async fn plans_are_listed_cheapest_first_in_their_newest_version() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    let first = ListPlansRequest { page_size: 2, ..Default::default() };
    let page = billing.client.clone().list_plans(user("eco_any")?.request(first)).await?.into_inner();
    let next = ListPlansRequest { page_token: page.next_page_token, ..Default::default() };
    let rest = billing.client.clone().list_plans(user("eco_any")?.request(next)).await?.into_inner();
    assert_eq!(rest.next_page_token, "");
    let plans: Vec<_> = page.plans.into_iter().chain(rest.plans).collect();
    let terms: Vec<_> = plans
        .iter()
        .map(|p| {
            (p.plan(), p.included_count, p.hard_limit, p.prices[0].monthly_micros, p.prices[0].overage_micros)
        })
        .collect();
    assert_eq!(
        terms,
        [
            (Plan::Free, 1_000, true, 0, 0),
            (Plan::Pro, 100_000, false, 49_000_000, 1_000),
            (Plan::Enterprise, -1, false, 500_000_000, 0)
        ]
    );
    billing.stop().await
}
