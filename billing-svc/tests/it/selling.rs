//! Subscriptions at Stripe that are changed from here, over the ports in memory: whatever is cut off, our tables say what
//! Stripe says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::{
    Error,
    app::{create_account, get_subscription, stripe_events},
    domain::{
        account::NewAccount,
        stripe_objects::{Customer, Subscription},
    },
};
use nexus_core::{id::EcoId, money::Currency, plan::Plan};
use nexus_kit::status;
use nexus_proto::{
    billing::v1::{ChangePlanRequest, GetSubscriptionRequest},
    common::v1 as common,
};
use nexus_testkit::{db::TestDb, seed, settings};
use tonic::Code;

use crate::{
    memory::Fault,
    sales_world::World,
    support::{Billing, anchor, user},
};

#[tokio::test]
async fn an_upgrade_is_made_at_stripe_at_once_and_a_downgrade_with_the_period() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let before = Utc::now();
    let changed = world.change(Plan::Enterprise, false).await?;
    ensure!(changed.apply_time >= before && changed.account.plan == Plan::Enterprise, "{changed:?}");
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));

    // Stripe has the lower price from now on, which the next invoice has; the plan stays for what is paid.
    let changed = world.change(Plan::Pro, false).await?;
    ensure!(changed.apply_time > before + TimeDelta::days(20), "{changed:?}");
    assert_eq!(world.at_stripe()?.prices[0].id, "price_pro");
    let waits = ("enterprise".into(), Some("sub_1".into()), Some("pro".into()), false);
    assert_eq!(world.account().await?, waits);
    assert_eq!(world.change(Plan::Pro, false).await?.apply_time, changed.apply_time, "it waits already");
    // Its event changes nothing more.
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
    assert_eq!(world.account().await?, waits);
    let shown = get_subscription::run(&world.sales.pool, &world.eco_id).await?;
    assert_eq!(shown.monthly_micros, Some(500_000_000));

    // Taken back.
    world.change(Plan::Enterprise, false).await?;
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    // Now.
    world.change(Plan::Pro, true).await?;
    assert_eq!(world.account().await?, ("pro".into(), Some("sub_1".into()), None, false));
    world.nothing_is_left().await
}

#[tokio::test]
async fn free_is_the_end_of_the_subscription_and_can_be_taken_back() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let changed = world.change(Plan::Free, false).await?;
    assert_eq!(Some(changed.apply_time), world.at_stripe()?.cancel_at);
    let ends = ("pro".into(), Some("sub_1".into()), None, true);
    assert_eq!(world.account().await?, ends);
    world.end(false).await?;
    assert_eq!(world.account().await?, ends);
    for _ in 0..2 {
        world.go_on().await?;
        assert_eq!(world.at_stripe()?.cancel_at, None);
        assert_eq!(world.account().await?, ("pro".into(), Some("sub_1".into()), None, false));
    }
    // An upgrade takes an end back, too.
    world.end(false).await?;
    world.change(Plan::Enterprise, false).await?;
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    world.end(true).await?;
    assert_eq!(world.account().await?, ("free".into(), None, None, false));
    ensure!(world.at_stripe()?.ended.is_some());
    for result in [world.go_on().await, world.end(false).await] {
        ensure!(matches!(result, Err(Error::NoSubscription(_))), "{result:?}");
    }
    world.nothing_is_left().await
}

#[tokio::test]
async fn whatever_goes_wrong_with_a_change_it_is_made() -> Result<()> {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::StoredError, Fault::StoredErrorAfterEffect] {
        let world = World::subscribed(Plan::Pro).await?;
        world.memory.fail_next(fault);
        world.change(Plan::Enterprise, false).await?;
        assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise", "{fault:?}");
        assert_eq!(world.account().await?.0, "enterprise", "{fault:?}");
        world.nothing_is_left().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_change_whose_caller_is_gone_is_made_by_the_server() -> Result<()> {
    let world = World::subscribed(Plan::Enterprise).await?;
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        changed = world.change(Plan::Pro, false) => anyhow::bail!("it ended: {changed:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    // What waits is written down before Stripe is asked.
    assert_eq!(world.account().await?.2.as_deref(), Some("pro"));
    let open = "select count(*) from eco_stripe_changes where finished_time is null";
    assert_eq!(sqlx::query_scalar::<_, i64>(open).fetch_one(&world.db.pool).await?, 1);
    world.work_off().await?;
    assert_eq!(world.at_stripe()?.prices[0].id, "price_pro");
    assert_eq!(
        world.account().await?,
        ("enterprise".into(), Some("sub_1".into()), Some("pro".into()), false)
    );
    Ok(())
}

#[tokio::test]
async fn what_stripe_refuses_changes_nothing() -> Result<()> {
    let world = World::subscribed(Plan::Enterprise).await?;
    // The price is withdrawn between the two looks.
    world.memory.state().prices[0].is_active = false;
    let refused = world.change(Plan::Pro, false).await;
    ensure!(matches!(refused, Err(Error::NoPriceAtStripe { plan: Plan::Pro, .. })), "{refused:?}");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    world.memory.state().prices[0].is_active = true;
    world.memory.refuse_next();
    let refused = world.change(Plan::Pro, false).await;
    ensure!(matches!(refused, Err(Error::StripeRefused(_))), "{refused:?}");
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, false));
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    world.nothing_is_left().await
}

#[tokio::test]
async fn an_account_is_created_with_what_its_subscription_is_at_stripe() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let other = Subscription {
        id: "sub_2".to_owned(),
        customer: "cus_2".to_owned(),
        eco_id: None,
        ..world.at_stripe()?
    };
    {
        let mut state = world.memory.state();
        state.subscriptions.insert(other.id.clone(), other.clone());
        for (id, eco_id, currency) in [
            ("cus_1", None, None),
            ("cus_2", None, Some("usd")),
            ("cus_a", Some("eco_a"), None),
            ("cus_eur", None, Some("eur")),
        ] {
            let named = |text: Option<&str>| text.map(str::to_owned);
            state
                .customers
                .insert(id.to_owned(), Customer { eco_id: named(eco_id), currency: named(currency) });
        }
    }
    let new = NewAccount {
        eco_id: EcoId::parse("eco_new")?,
        email: None,
        plan: Plan::Pro,
        stripe_customer_id: Some("cus_2".to_owned()),
        stripe_subscription_id: Some("sub_2".to_owned()),
        anchor_time: None,
        currency: Currency::USD,
        request_id: None,
    };
    let of_customer = |id: &str| NewAccount {
        stripe_customer_id: Some(id.to_owned()),
        stripe_subscription_id: None,
        ..new.clone()
    };
    for (wrong, field) in [
        (NewAccount { plan: Plan::Enterprise, ..new.clone() }, "plan"),
        (NewAccount { stripe_customer_id: Some("cus_1".to_owned()), ..new.clone() }, "stripe_customer_id"),
        (
            NewAccount { stripe_subscription_id: Some("sub_x".to_owned()), ..new.clone() },
            "stripe_subscription_id",
        ),
        (of_customer("cus_x"), "stripe_customer_id"),
        (of_customer("cus_a"), "stripe_customer_id"),
        (of_customer("cus_eur"), "currency_code"),
    ] {
        match create_account::run(&world.sales, &wrong, "test").await {
            Err(Error::Invalid(violations)) => {
                let fields: Vec<_> = violations.0.iter().map(|v| v.field.as_str()).collect();
                assert_eq!(fields, [field]);
            }
            other => anyhow::bail!("{field}: {other:?}"),
        }
    }
    let created = create_account::run(&world.sales, &new, "test").await?;
    ensure!((created.anchor_time - other.anchor).abs() < TimeDelta::seconds(1), "{created:?}");
    Ok(())
}

/// Over gRPC, without a Stripe.
#[tokio::test]
async fn a_user_gets_a_plan_that_is_paid_for_only_by_a_checkout_and_an_admin_gives_it() -> Result<()> {
    let db = TestDb::new().await?;
    let billing = Billing::start(&db, "http://127.0.0.1:9/").await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let change = |plan: common::Plan| ChangePlanRequest {
        eco_id: "eco_a".to_owned(),
        plan: plan.into(),
        ..ChangePlanRequest::default()
    };
    let ask = async |who: &str, plan| {
        billing
            .client
            .clone()
            .change_plan(user(who)?.request(change(plan)))
            .await
            .map_err(anyhow::Error::from)
    };
    let refused = ask("eco_a", common::Plan::Pro).await.err().context("not refused")?;
    let refused = refused.downcast::<tonic::Status>()?;
    assert_eq!(
        (refused.code(), status::reason(&refused).as_str()),
        (Code::FailedPrecondition, "CHECKOUT_REQUIRED")
    );
    let given = ask(settings::ADMIN, common::Plan::Enterprise).await?.into_inner();
    assert_eq!(given.account.context("an account")?.plan(), common::Plan::Enterprise);
    // A lower one that is paid for is none that was given.
    let refused = ask("eco_a", common::Plan::Pro).await;
    ensure!(refused.is_err(), "{refused:?}");
    ask("eco_a", common::Plan::Free).await?;
    ask("eco_a", common::Plan::Enterprise).await?;
    let request = user("eco_a")?.request(GetSubscriptionRequest::default());
    let shown = billing.client.clone().get_subscription(request).await?.into_inner();
    let shown = shown.subscription.context("a subscription")?;
    assert_eq!((shown.plan(), shown.next_plan()), (common::Plan::Enterprise, common::Plan::Unspecified));
    ensure!(shown.stripe_subscription_id.is_empty() && shown.cancel_time.is_none(), "{shown:?}");
    tokio::time::timeout(Duration::from_secs(10), billing.stop()).await?
}
