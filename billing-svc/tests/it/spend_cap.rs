//! Spend caps: who sets them, what they may be, and what is left of them. What they refuse, usage-svc's tests show.

use anyhow::{Context, Result};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, status};
use nexus_proto::billing::v1::{Account, GetAccountRequest, ListAccountsRequest, SetSpendCapRequest};
use nexus_testkit::{
    db::TestDb,
    seed,
    settings::{self, ADMIN},
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{Billing, anchor, fields, manager, record, runner, user};

const NO_STRIPE: &str = "http://127.0.0.1:9/";

async fn suite() -> Result<(TestDb, Billing)> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, NO_STRIPE).await?;
    seed::account(&db.pool, "eco_a", Plan::Pro, anchor()).await?;
    Ok((db, billing))
}

fn cap(micros: impl Into<Option<i64>>) -> SetSpendCapRequest {
    SetSpendCapRequest {
        eco_id: "eco_a".into(),
        spend_cap_micros: micros.into(),
        ..SetSpendCapRequest::default()
    }
}

async fn set(billing: &Billing, by: CallOptions, request: SetSpendCapRequest) -> Result<Account, Status> {
    let answer = billing.client.clone().set_spend_cap(by.request(request)).await?;
    answer.into_inner().account.ok_or_else(|| Status::internal("no account"))
}

/// Cap, what is left of it, and the units that it allows.
async fn shown(billing: &Billing) -> Result<(Option<i64>, Option<i64>, i64)> {
    let overage = billing.overage("eco_a").await?;
    Ok((overage.spend_cap_micros, overage.spend_cap_left_micros, overage.spend_cap_limit_count))
}

/// The cap of the account in the database, and how often it has changed.
async fn kept(db: &TestDb) -> Result<(Option<i64>, i32)> {
    let statement = "select spend_cap_micros, spend_cap_epoch from eco_identities where eco_id = 'eco_a'";
    Ok(sqlx::query_as(statement).fetch_one(&db.pool).await?)
}

#[tokio::test]
async fn a_cap_is_set_changed_and_removed_and_what_is_left_of_it_is_shown() -> Result<()> {
    let (db, billing) = suite().await?;
    assert_eq!(shown(&billing).await?, (None, None, -1));
    assert_eq!(set(&billing, manager()?, cap(12_500_000)).await?.spend_cap_micros, Some(12_500_000));
    assert_eq!(shown(&billing).await?, (Some(12_500_000), Some(12_500_000), 112_500));
    record(&db, "eco_a", 105_001).await?;
    assert_eq!(shown(&billing).await?, (Some(12_500_000), Some(7_499_000), 112_500));
    let get = GetAccountRequest { eco_id: "eco_a".into() };
    let account = billing.client.clone().get_account(manager()?.request(get)).await?.into_inner().account;
    assert_eq!(account.context("an account")?.spend_cap_micros, Some(12_500_000));

    // Below what is spent.
    set(&billing, manager()?, cap(1_000_000)).await?;
    assert_eq!(shown(&billing).await?, (Some(1_000_000), Some(0), 101_000));
    set(&billing, manager()?, cap(0)).await?;
    assert_eq!(shown(&billing).await?, (Some(0), Some(0), 100_000));
    assert_eq!(kept(&db).await?, (Some(0), 3));
    let list =
        billing.client.clone().list_accounts(manager()?.request(ListAccountsRequest::default())).await?;
    assert_eq!(list.into_inner().accounts[0].spend_cap_micros, Some(0));

    // The same again changes nothing.
    set(&billing, manager()?, cap(0)).await?;
    assert_eq!(kept(&db).await?, (Some(0), 3));
    assert_eq!(set(&billing, manager()?, cap(None)).await?.spend_cap_micros, None);
    assert_eq!(shown(&billing).await?, (None, None, -1));
    assert_eq!(kept(&db).await?, (None, 4));
    billing.stop().await
}

#[tokio::test]
async fn a_plan_that_refuses_by_itself_or_bills_nothing_is_not_capped() -> Result<()> {
    let (db, billing) = suite().await?;
    set(&billing, manager()?, cap(1_000_000)).await?;
    for (change, limit) in [
        ("update eco_plans set hard_limit = true where plan = 'pro'", -1),
        ("update eco_plans set hard_limit = false where plan = 'pro'", 101_000),
        ("update eco_subscriptions set status = 'unpaid'", -1),
        ("update eco_subscriptions set status = 'active', plan = 'enterprise'", -1),
        ("update eco_subscriptions set plan = 'free'", -1),
    ] {
        sqlx::query(change).execute(&db.pool).await?;
        assert_eq!(shown(&billing).await?, (Some(1_000_000), Some(1_000_000), limit), "{change}");
    }
    billing.stop().await
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_sets_nothing() -> Result<()> {
    let (db, billing) = suite().await?;
    let first = SetSpendCapRequest { request_id: Uuid::new_v4().to_string(), ..cap(5_000_000) };
    set(&billing, manager()?, first.clone()).await?;
    set(&billing, manager()?, cap(None)).await?;
    let repeated = set(&billing, manager()?, first.clone()).await?;
    assert_eq!((repeated.spend_cap_micros, kept(&db).await?), (Some(5_000_000), (None, 2)));
    for other in [Some(1_000_000), None] {
        let other = SetSpendCapRequest { spend_cap_micros: other, ..first.clone() };
        let refused = set(&billing, manager()?, other).await.err().context("another cap")?;
        assert_eq!(fields(&refused), ["request_id"]);
    }
    // One that removed the cap is one as well.
    let remove = SetSpendCapRequest { request_id: Uuid::new_v4().to_string(), ..cap(None) };
    set(&billing, manager()?, remove.clone()).await?;
    set(&billing, manager()?, cap(7_000_000)).await?;
    assert_eq!(set(&billing, manager()?, remove).await?.spend_cap_micros, None);
    assert_eq!(kept(&db).await?, (Some(7_000_000), 3));
    billing.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_at_once_set_a_cap_once() -> Result<()> {
    let (db, billing) = suite().await?;
    let request = SetSpendCapRequest { request_id: Uuid::new_v4().to_string(), ..cap(5_000_000) };
    let by = manager()?;
    let all = (0..8).map(|_| set(&billing, by.clone(), request.clone()));
    let answers = futures::future::try_join_all(all).await?;
    assert!(answers.iter().all(|account| account.spend_cap_micros == Some(5_000_000)));
    assert_eq!(kept(&db).await?, (Some(5_000_000), 1));
    billing.stop().await
}

#[tokio::test]
async fn users_cap_their_own_account_and_admins_and_managers_any() -> Result<()> {
    let (db, billing) = suite().await?;
    let own = SetSpendCapRequest { eco_id: String::new(), ..cap(1_000_000) };
    set(&billing, user("eco_a")?, own.clone()).await?;
    set(&billing, user(ADMIN)?, cap(2_000_000)).await?;
    set(&billing, manager()?, cap(3_000_000)).await?;
    for others in [user("eco_b")?, runner()?] {
        let refused = set(&billing, others, cap(4_000_000)).await.err().context("another's account")?;
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    assert_eq!(kept(&db).await?, (Some(3_000_000), 3));

    let all_wrong = SetSpendCapRequest {
        eco_id: "nobody".into(),
        spend_cap_micros: Some(-1),
        currency_code: "dollars".into(),
        request_id: "x".into(),
    };
    let invalid = set(&billing, manager()?, all_wrong).await.err().context("all is wrong")?;
    assert_eq!(fields(&invalid), ["eco_id", "spend_cap_micros", "currency_code", "request_id"]);
    // What the account says of it.
    let yen = SetSpendCapRequest { currency_code: "JPY".into(), ..cap(5_001) };
    let invalid = set(&billing, manager()?, yen).await.err().context("not in dollars, nor whole cents")?;
    assert_eq!(fields(&invalid), ["currency_code", "spend_cap_micros"]);
    set(&billing, manager()?, SetSpendCapRequest { currency_code: "usd".into(), ..cap(4_000_000) }).await?;

    let unknown = SetSpendCapRequest { eco_id: "eco_nobody".into(), ..cap(0) };
    let unknown = set(&billing, manager()?, unknown).await.err().context("nobody")?;
    assert_eq!(unknown.code(), Code::NotFound);
    sqlx::query("update eco_identities set status = 'closed', closed_time = now()").execute(&db.pool).await?;
    let closed = set(&billing, user("eco_a")?, own).await.err().context("it is closed")?;
    assert_eq!(
        (closed.code(), status::reason(&closed).as_str()),
        (Code::FailedPrecondition, "ACCOUNT_CLOSED")
    );
    let reader = CallOptions::bearer(
        &settings::service_token(&[Scope::UsageCheck])?,
        std::time::Duration::from_secs(20),
    )?;
    let refused = set(&billing, reader, cap(0)).await.err().context("without the scope")?;
    assert_eq!(refused.code(), Code::PermissionDenied);
    billing.stop().await
}
