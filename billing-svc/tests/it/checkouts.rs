//! Checkouts, over the ports in memory: whatever is cut off, one of an account is open, and none once it is closed.

use anyhow::{Context, Result, ensure};
use nexus_billing::{
    Error,
    app::{close_account, stripe_events},
};
use nexus_core::plan::Plan;
use nexus_kit::status;
use nexus_proto::{billing::v1::CreateCheckoutSessionRequest, common::v1 as common};
use nexus_testkit::{db::TestDb, seed};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::{
    memory::Fault,
    sales_world::World,
    support::{Billing, Sim, anchor, user},
};

impl World {
    /// A day passes for the checkouts that were written down.
    async fn a_day_later(&self) -> Result<()> {
        let statement = "update eco_checkouts set created_time = created_time - interval '1 day',
            look_due_time = look_due_time - interval '1 day'";
        sqlx::query(statement).execute(&self.db.pool).await?;
        Ok(())
    }
}

#[tokio::test]
async fn one_checkout_is_open_and_leads_to_one_subscription() -> Result<()> {
    let world = World::new().await?;
    let opened = world.checkout(Plan::Pro).await?;
    assert_eq!(world.checkout(Plan::Pro).await?, opened);
    assert_eq!(world.memory.open_sessions(), [opened.session_id.as_str()]);
    // Of another plan: the first is ended before.
    let other = world.checkout(Plan::Enterprise).await?;
    assert_eq!(world.memory.open_sessions(), [other.session_id.as_str()]);
    let again = world.checkout(Plan::Pro).await?;
    assert_eq!(world.memory.open_sessions(), [again.session_id.as_str()]);
    let subscription = world.memory.go_through(&again.session_id).context("a subscription")?;
    // Before its event is heard.
    for plan in [Plan::Pro, Plan::Enterprise] {
        let refused = world.checkout(plan).await;
        ensure!(matches!(refused, Err(Error::AlreadySubscribed(_))), "{refused:?}");
    }
    assert_eq!(world.account().await?, ("pro".into(), Some(subscription), None, false));
    ensure!(world.memory.open_sessions().is_empty());
    // After its end there may be another.
    world.end(true).await?;
    let second = world.checkout(Plan::Pro).await?;
    assert_eq!(world.memory.open_sessions(), [second.session_id]);
    Ok(())
}

#[tokio::test]
async fn a_checkout_that_is_cut_off_anywhere_never_makes_a_second_one_that_can_be_used() -> Result<()> {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::NoAnswer] {
        let world = World::new().await?;
        world.memory.fail_next(fault);
        if fault == Fault::NoAnswer {
            tokio::select! {
                opened = world.checkout(Plan::Pro) => anyhow::bail!("it ended: {opened:?}"),
                () = world.memory.until_unanswered(1) => {}
            }
        } else {
            let left = world.checkout(Plan::Pro).await;
            ensure!(matches!(left, Err(Error::StripeUnavailable(_))), "{fault:?}: {left:?}");
        }
        let opened = world.checkout(Plan::Pro).await?;
        assert_eq!(world.memory.open_sessions(), [opened.session_id], "{fault:?}");
    }
    // An error that is kept for the key: nobody ever hears of what it may have made.
    let world = World::new().await?;
    world.memory.fail_next(Fault::StoredErrorAfterEffect);
    let failed = world.checkout(Plan::Pro).await;
    ensure!(failed.is_err(), "{failed:?}");
    let unheard = world.memory.open_sessions();
    let opened = world.checkout(Plan::Pro).await?;
    ensure!(!unheard.contains(&opened.session_id));
    // One whose time is over is no more.
    world.a_day_later().await?;
    world.memory.time_is_over(&opened.session_id);
    let later = world.checkout(Plan::Pro).await?;
    assert_ne!(later.session_id, opened.session_id);
    Ok(())
}

#[tokio::test]
async fn one_that_was_paid_for_is_found_however_late_and_without_its_event() -> Result<()> {
    // Of the same plan and of another.
    for plan in [Plan::Pro, Plan::Enterprise] {
        let world = World::new().await?;
        let opened = world.checkout(Plan::Pro).await?;
        let subscription = world.memory.go_through(&opened.session_id).context("a subscription")?;
        world.a_day_later().await?;
        for _ in 0..2 {
            let refused = world.checkout(plan).await;
            ensure!(matches!(refused, Err(Error::AlreadySubscribed(_))), "{refused:?}");
        }
        assert_eq!(world.account().await?, ("pro".into(), Some(subscription.clone()), None, false));
        ensure!(world.memory.open_sessions().is_empty());
        // Its event comes in the end, and changes nothing.
        stripe_events::bring_up(&world.sales.pool, &world.sales.events, &subscription, Some("eco_a")).await?;
        assert_eq!(world.account().await?.1, Some(subscription));
        // After its end there may be another.
        world.end(true).await?;
        world.checkout(plan).await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_whose_session_nobody_heard_of_is_found_by_its_account() -> Result<()> {
    for (fault, has_customer) in
        [(Fault::AnswerLost, false), (Fault::AnswerLost, true), (Fault::StoredErrorAfterEffect, false)]
    {
        let world = World::new().await?;
        if has_customer {
            sqlx::query("update eco_identities set stripe_customer_id = 'cus_a'")
                .execute(&world.db.pool)
                .await?;
        }
        world.memory.fail_next(fault);
        let left = world.checkout(Plan::Pro).await;
        ensure!(matches!(left, Err(Error::StripeUnavailable(_))), "{left:?}");
        let session_id = world.memory.open_sessions().pop().context("a session")?;
        // Somebody found its address all the same: at Stripe's dashboard, say.
        let subscription = world.memory.go_through(&session_id).context("a subscription")?;
        if fault == Fault::AnswerLost {
            world.a_day_later().await?;
        }
        let refused = world.checkout(Plan::Enterprise).await;
        ensure!(matches!(refused, Err(Error::AlreadySubscribed(_))), "{fault:?}: {refused:?}");
        assert_eq!(world.account().await?, ("pro".into(), Some(subscription), None, false));
    }
    // One that is still open ends before another is opened; one of another account does not.
    let world = World::new().await?;
    let others = world.memory.open_of_another("eco_other");
    world.memory.fail_next(Fault::StoredErrorAfterEffect);
    ensure!(world.checkout(Plan::Pro).await.is_err());
    let opened = world.checkout(Plan::Pro).await?;
    let mut open = world.memory.open_sessions();
    open.sort();
    let mut expected = vec![others, opened.session_id];
    expected.sort();
    assert_eq!(open, expected);
    Ok(())
}

#[tokio::test]
async fn what_was_paid_for_is_had_though_nobody_asks_again_and_no_event_comes() -> Result<()> {
    let world = World::new().await?;
    let opened = world.checkout(Plan::Pro).await?;
    let subscription = world.memory.go_through(&opened.session_id).context("a subscription")?;
    world.a_day_later().await?;
    world.serve_until("select exists (select from eco_checkouts where look_due_time is null)").await?;
    assert_eq!(world.account().await?, ("pro".into(), Some(subscription), None, false));
    // One that nobody went through is over.
    let world = World::new().await?;
    let opened = world.checkout(Plan::Pro).await?;
    world.memory.time_is_over(&opened.session_id);
    world.a_day_later().await?;
    world.serve_until("select not exists (select from eco_checkouts where closed_time is null)").await
}

#[tokio::test]
async fn what_was_paid_for_ends_with_its_account_without_its_event() -> Result<()> {
    for is_late in [false, true] {
        let world = World::new().await?;
        let opened = world.checkout(Plan::Pro).await?;
        let subscription = world.memory.go_through(&opened.session_id).context("a subscription")?;
        if is_late {
            world.a_day_later().await?;
        }
        close_account::run(&world.sales, &world.eco_id, "test").await?;
        world.work_off().await?;
        let state = world.memory.state();
        ensure!(
            state.subscriptions.get(&subscription).is_some_and(|found| found.ended.is_some()),
            "{is_late}"
        );
    }
    Ok(())
}

/// Over gRPC, with a stand-in Stripe that sends no events.
#[tokio::test]
async fn a_day_after_a_payment_that_nobody_heard_of_there_is_one_subscription() -> Result<()> {
    let (db, sim) = (TestDb::new().await?, Sim::start().await?);
    sim.price("pro").await?;
    seed::account(&db.pool, "eco_a", Plan::Free, anchor()).await?;
    let replicas = [Billing::start(&db, &sim.base).await?, Billing::start(&db, &sim.base).await?];
    let open = async |billing: &Billing| {
        let request = CreateCheckoutSessionRequest { plan: common::Plan::Pro.into(), ..Default::default() };
        anyhow::Ok(billing.client.clone().create_checkout_session(user("eco_a")?.request(request)).await)
    };
    let opened = open(&replicas[0]).await??.into_inner();
    assert_eq!(open(&replicas[1]).await??.into_inner(), opened);
    sim.admin(&format!("/checkout/{}/complete", opened.session_id), json!({})).await?;
    sqlx::query("update eco_checkouts set created_time = created_time - interval '1 day'")
        .execute(&db.pool)
        .await?;
    for refused in futures::future::join_all(replicas.iter().map(&open)).await {
        let refused = refused?.err().context("not refused")?;
        let expected = (Code::FailedPrecondition, "ALREADY_SUBSCRIBED".to_owned());
        assert_eq!((refused.code(), status::reason(&refused)), expected);
    }
    let state = sim.read("/state").await?;
    assert_eq!(state["subscriptions"].as_array().map(Vec::len), Some(1));
    let has: (String, Option<String>) =
        sqlx::query_as("select plan, stripe_subscription_id from eco_subscriptions where ended_time is null")
            .fetch_one(&db.pool)
            .await?;
    let expected = state["subscriptions"][0]["id"].as_str().map(str::to_owned);
    assert_eq!(has, ("pro".to_owned(), expected));
    for billing in replicas {
        billing.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_account_opens_so_many_checkouts_a_day() -> Result<()> {
    let world = World::new().await?;
    // Each plan in turn: the one before is ended.
    for turn in 0..100 {
        world.checkout(if turn % 2 == 0 { Plan::Pro } else { Plan::Enterprise }).await?;
    }
    // The one that is open is returned, as ever.
    let open = world.checkout(Plan::Enterprise).await?;
    assert_eq!(world.memory.open_sessions(), [open.session_id]);
    let error = world.checkout(Plan::Pro).await.err().context("not refused")?;
    ensure!(matches!(error, Error::TooManyCheckouts { .. }), "{error:?}");
    let refused = tonic::Status::from(error);
    let expected = (Code::ResourceExhausted, "TOO_MANY_CHECKOUTS".to_owned());
    assert_eq!((refused.code(), status::reason(&refused)), expected);
    let retry =
        refused.get_error_details().retry_info().and_then(|info| info.retry_delay).context("a time")?;
    ensure!((85_000..=86_400).contains(&retry.as_secs()), "{retry:?}");
    // Another account's are its own; and a day later there is room.
    sqlx::query(
        "update eco_checkouts set created_time = created_time - interval '25 hours' where number = 1",
    )
    .execute(&world.db.pool)
    .await?;
    world.checkout(Plan::Pro).await?;
    Ok(())
}

#[tokio::test]
async fn a_closed_account_pays_for_nothing_more() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        closed = close_account::run(&world.sales, &world.eco_id, "test") => anyhow::bail!("it ended: {closed:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    world.work_off().await?;
    ensure!(world.at_stripe()?.ended.is_some());
    Ok(())
}

#[tokio::test]
async fn a_checkout_ends_with_its_account() -> Result<()> {
    // Whatever goes wrong with the end, or went wrong with the checkout.
    for (at_checkout, at_end) in [
        (None, None),
        (None, Some(Fault::Lost)),
        (None, Some(Fault::AnswerLost)),
        (Some(Fault::Lost), None),
        (Some(Fault::AnswerLost), None),
        (Some(Fault::AnswerLost), Some(Fault::Lost)),
    ] {
        let world = World::new().await?;
        at_checkout.into_iter().for_each(|fault| world.memory.fail_next(fault));
        assert_eq!(world.checkout(Plan::Pro).await.is_ok(), at_checkout.is_none());
        at_end.into_iter().for_each(|fault| world.memory.fail_next(fault));
        close_account::run(&world.sales, &world.eco_id, "test").await?;
        world.work_off().await?;
        ensure!(world.memory.open_sessions().is_empty(), "{at_checkout:?} {at_end:?}");
        let refused = world.checkout(Plan::Pro).await;
        ensure!(matches!(refused, Err(Error::AccountClosed(_))), "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_comes_to_a_closed_account_ends() -> Result<()> {
    let world = World::new().await?;
    let opened = world.checkout(Plan::Pro).await?;
    // The customer is through it in the moment in which the account is closed.
    let late = world.memory.go_through(&opened.session_id).context("a subscription")?;
    close_account::run(&world.sales, &world.eco_id, "test").await?;
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, &late, None).await?;
    world.work_off().await?;
    let state = world.memory.state();
    ensure!(state.subscriptions.get(&late).is_some_and(|found| found.ended.is_some()));
    Ok(())
}
