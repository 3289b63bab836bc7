//! Checkouts, over the ports in memory: whatever is cut off, one of an account is open, and none once it is closed.

use anyhow::{Context, Result, ensure};
use nexus_billing::{
    Error,
    app::{close_account, stripe_events},
};
use nexus_core::plan::Plan;

use crate::{memory::Fault, sales_world::World};

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
    sqlx::query("update eco_checkouts set created_time = created_time - interval '1 day'")
        .execute(&world.db.pool)
        .await?;
    let later = world.checkout(Plan::Pro).await?;
    assert_ne!(later.session_id, opened.session_id);
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
    world.nothing_is_left().await?;
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, &late, None).await?;
    world.work_off().await?;
    let state = world.memory.state();
    ensure!(state.subscriptions.get(&late).is_some_and(|found| found.ended.is_some()));
    Ok(())
}
