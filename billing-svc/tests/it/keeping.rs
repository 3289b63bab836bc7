//! A subscription at Stripe that is to end, or whose plan is to change, and keeps it; and how often a day that may be.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_billing::{
    Error,
    app::{get_subscription, stripe_events},
};
use nexus_core::plan::Plan;
use nexus_kit::status;
use tonic::Code;
use tonic_types::StatusExt;

use crate::{memory::Fault, sales_world::World};

/// A date that somebody has set at Stripe's dashboard.
fn ends_on(world: &World, days: i64) -> Result<DateTime<Utc>> {
    let date =
        DateTime::from_timestamp((Utc::now() + TimeDelta::days(days)).timestamp(), 0).context("a time")?;
    let mut state = world.memory.state();
    let found = state.subscriptions.get_mut("sub_1").context("a subscription")?;
    (found.cancel_at, found.ends_by_date) = (Some(date), true);
    Ok(date)
}

#[tokio::test]
async fn an_end_by_a_date_is_shown_and_taken_back_like_any_other() -> Result<()> {
    let going_on = ("pro".to_owned(), Some("sub_1".to_owned()), None, false);
    for (to, expected) in [
        (None, going_on.clone()),
        (Some(Plan::Pro), going_on),
        (Some(Plan::Enterprise), ("enterprise".to_owned(), Some("sub_1".to_owned()), None, false)),
    ] {
        let world = World::subscribed(Plan::Pro).await?;
        let date = ends_on(&world, 200)?;
        stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
        let shown = get_subscription::run(&world.sales.pool, &world.eco_id).await?;
        assert_eq!(shown.cancel_time, Some(date));
        match to {
            None => world.go_on().await.map(|_| ())?,
            Some(plan) => world.change(plan, false).await.map(|_| ())?,
        }
        assert_eq!(world.account().await?, expected, "{to:?}");
        assert_eq!(world.at_stripe()?.cancel_at, None, "{to:?}");
        assert_eq!(world.attempts().await?, [1], "{to:?}: it is asked for once, in its own form");
        world.nothing_is_left().await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_that_ends_by_a_later_date_can_end_with_its_period() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let sooner = ends_on(&world, 5)?;
    // Before the period's end: it stays so.
    let shown = world.end(false).await?;
    assert_eq!((shown.cancel_time, world.attempts().await?), (Some(sooner), vec![]));
    ends_on(&world, 200)?;
    let shown = world.end(false).await?;
    // Stripe's times are whole seconds.
    let with_period = |at| at - shown.period_end < TimeDelta::seconds(1);
    ensure!(shown.cancel_time.is_some_and(with_period), "{shown:?}");
    ensure!(!world.at_stripe()?.ends_by_date);
    world.nothing_is_left().await
}

#[tokio::test]
async fn a_date_that_is_set_while_a_change_is_under_way_is_not_asked_away_for_ever() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    world.end(false).await?;
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        went_on = world.go_on() => anyhow::bail!("it ended: {went_on:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    ends_on(&world, 200)?;
    world.work_off().await?;
    assert_eq!(world.at_stripe()?.cancel_at, None);
    assert_eq!(world.account().await?, ("pro".into(), Some("sub_1".into()), None, false));
    // Where Stripe makes a change time and again, and it is not so, it is given up.
    let world = World::subscribed(Plan::Pro).await?;
    world.memory.state().sold.keeps_ends = true;
    world.end(false).await?;
    ensure!(world.go_on().await.is_err());
    world.work_off_all().await?;
    let outcome = "select outcome from eco_stripe_changes order by change_id desc limit 1";
    assert_eq!(sqlx::query_scalar::<_, String>(outcome).fetch_one(&world.db.pool).await?, "refused");
    ensure!(world.attempts().await?.iter().all(|attempt| *attempt <= 12), "{:?}", world.attempts().await?);
    // Our tables say what Stripe says.
    assert_eq!(world.account().await?, ("pro".into(), Some("sub_1".into()), None, true));
    Ok(())
}

#[tokio::test]
async fn taking_up_again_keeps_the_plan_and_nothing_waits() -> Result<()> {
    let kept = ("enterprise".to_owned(), Some("sub_1".to_owned()), None, false);
    // A downgrade that Stripe has made, and one whose answer, or request, did not come yet.
    for (fault, times) in [(Fault::None, 0), (Fault::NoAnswer, 1), (Fault::Lost, 3)] {
        for ends in [false, true] {
            let world = World::subscribed(Plan::Enterprise).await?;
            if ends {
                world.end(false).await?;
            }
            (0..times).for_each(|_| world.memory.fail_next(fault));
            tokio::select! {
                changed = world.change(Plan::Pro, false) => assert_eq!(changed.is_ok(), fault == Fault::None),
                () = world.memory.until_unanswered(1) => {}
            }
            assert_eq!(world.account().await?.2.as_deref(), Some("pro"));
            let shown = world.go_on().await?;
            assert_eq!((shown.plan, shown.next, shown.cancel_time), (Plan::Enterprise, None, None));
            assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise", "{fault:?} {ends}");
            assert_eq!(world.account().await?, kept, "{fault:?} {ends}");
            world.work_off().await?;
            assert_eq!(world.account().await?, kept);
        }
    }
    // An end after a downgrade.
    let world = World::subscribed(Plan::Enterprise).await?;
    world.change(Plan::Pro, false).await?;
    world.end(false).await?;
    world.go_on().await?;
    assert_eq!((world.account().await?, world.at_stripe()?.cancel_at), (kept, None));
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    Ok(())
}

#[tokio::test]
async fn a_lower_plan_that_is_not_paid_for_at_stripe_does_not_come() -> Result<()> {
    let kept = ("enterprise".to_owned(), Some("sub_1".to_owned()), None, false);
    let world = World::subscribed(Plan::Enterprise).await?;
    world.change(Plan::Pro, false).await?;
    // Somebody at Stripe's dashboard takes it back.
    {
        let mut state = world.memory.state();
        let found = state.subscriptions.get_mut("sub_1").context("a subscription")?;
        let price = found.prices.first_mut().context("a price")?;
        price.id = "price_enterprise".to_owned();
        price.lookup_key = Some("enterprise".to_owned());
    }
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
    assert_eq!(world.account().await?, kept);
    // An end came instead of it.
    world.memory.fail_next(Fault::Lost);
    world.memory.fail_next(Fault::Lost);
    world.memory.fail_next(Fault::Lost);
    ensure!(world.change(Plan::Pro, false).await.is_err());
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
    assert_eq!(world.account().await?.2.as_deref(), Some("pro"), "it is on its way");
    world.end(false).await?;
    stripe_events::bring_up(&world.sales.pool, &world.sales.events, "sub_1", None).await?;
    assert_eq!(world.account().await?, ("enterprise".into(), Some("sub_1".into()), None, true));
    Ok(())
}

#[tokio::test]
async fn a_plan_is_changed_at_stripe_so_often_a_day_and_can_always_end() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let seeded =
        "insert into eco_stripe_changes (eco_id, stripe_subscription_id, change, outcome, finished_time)
        select 'eco_a', 'sub_1', '{\"kind\": \"go_on\"}', 'done', now() from generate_series(1, 99)";
    sqlx::query(seeded).execute(&world.db.pool).await?;
    world.change(Plan::Enterprise, false).await?;
    let error = world.change(Plan::Pro, true).await.err().context("not refused")?;
    let refused = tonic::Status::from(error);
    let expected = (Code::ResourceExhausted, "TOO_MANY_PLAN_CHANGES".to_owned());
    assert_eq!((refused.code(), status::reason(&refused)), expected);
    ensure!(refused.get_error_details().retry_info().is_some_and(|info| info.retry_delay.is_some()));
    assert_eq!(world.account().await?.0, "enterprise");
    assert_eq!(world.at_stripe()?.prices[0].id, "price_enterprise");
    // Whoever would stop paying can.
    ensure!(world.end(false).await?.cancel_time.is_some());
    let error = world.go_on().await.err().context("not refused")?;
    ensure!(matches!(error, Error::TooManyChanges { .. }), "{error:?}");
    world.end(true).await?;
    assert_eq!(world.account().await?.0, "free");
    Ok(())
}
