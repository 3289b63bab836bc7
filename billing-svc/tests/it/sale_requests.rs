//! Requests about subscriptions that are repeated: with the same id nothing happens twice, whatever came between.

use anyhow::{Context, Result, ensure};
use nexus_billing::{
    Error,
    app::{
        change_plan,
        sales::{change, checkout},
    },
    domain::{
        plan_change::{PlanChange, PlanChanged},
        sale::{OpenCheckout, ShownSubscription},
    },
};
use nexus_core::plan::Plan;
use uuid::Uuid;

use crate::{memory::Fault, sales_world::World};

impl World {
    async fn end_as(&self, id: Uuid) -> Result<ShownSubscription, Error> {
        change::end(&self.sales, &self.eco_id, false, Some(id), "user:eco_a").await
    }

    async fn go_on_as(&self, id: Uuid) -> Result<ShownSubscription, Error> {
        change::go_on(&self.sales, &self.eco_id, Some(id), "user:eco_a").await
    }

    async fn checkout_as(&self, id: Uuid, plan: Plan) -> Result<OpenCheckout, Error> {
        checkout::run(&self.sales, &self.eco_id, plan, Some(id), "user:eco_a").await
    }

    fn plan_change(&self, id: Uuid, plan: Plan, apply_now: bool) -> PlanChange {
        let eco_id = self.eco_id.clone();
        PlanChange { eco_id, plan, apply_now, request_id: Some(id), by_user: true }
    }

    async fn change_as(&self, id: Uuid, plan: Plan, apply_now: bool) -> Result<PlanChanged, Error> {
        change_plan::run(&self.sales, &self.plan_change(id, plan, apply_now), "user:eco_a").await
    }

    /// Keys under which something was sent, as the changes have them: their numbers and attempts.
    async fn sent(&self) -> Result<Vec<(i64, i32)>> {
        let statement = "select change_id, attempt from eco_stripe_changes order by change_id";
        Ok(sqlx::query_as(statement).fetch_all(&self.db.pool).await?)
    }
}

fn field(result: Result<impl std::fmt::Debug, Error>) -> Result<String> {
    match result {
        Err(Error::Invalid(violations)) => {
            Ok(violations.0.into_iter().map(|violation| violation.field).collect::<Vec<_>>().join(","))
        }
        other => anyhow::bail!("{other:?}"),
    }
}

#[tokio::test]
async fn a_repeat_returns_the_first_answer_and_changes_nothing_back() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let (one, two, three) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    // It goes on already: nothing is sent, and a repeat sends nothing either.
    let going = world.go_on_as(one).await?;
    assert_eq!((going.cancel_time, world.sent().await?.len()), (None, 0));
    let ends = world.end_as(two).await?;
    ensure!(ends.cancel_time.is_some() && ends.plan == Plan::Pro, "{ends:?}");
    assert_eq!(world.go_on_as(one).await?, going);
    ensure!(world.at_stripe()?.cancel_at.is_some());
    assert_eq!(world.end_as(two).await?, ends);

    world.go_on_as(three).await?;
    assert_eq!(world.end_as(two).await?, ends, "a late repeat");
    assert_eq!((world.at_stripe()?.cancel_at, world.sent().await?.len()), (None, 2));
    // The id of one request is not another's.
    assert_eq!(field(world.end_as(three).await)?, "request_id");
    assert_eq!(field(world.checkout_as(two, Plan::Pro).await)?, "request_id");
    let now = change::end(&world.sales, &world.eco_id, true, Some(two), "user:eco_a").await;
    assert_eq!(field(now)?, "request_id");
    // After the subscription's end, too.
    let (last, late) = (Uuid::now_v7(), Uuid::now_v7());
    let over = change::end(&world.sales, &world.eco_id, true, Some(last), "user:eco_a").await?;
    assert_eq!((over.plan, &over.stripe_subscription_id), (Plan::Free, &None));
    assert_eq!(change::end(&world.sales, &world.eco_id, true, Some(last), "user:eco_a").await?, over);
    assert_eq!(world.end_as(two).await?, ends);
    let none = world.end_as(late).await;
    ensure!(matches!(none, Err(Error::NoSubscription(_))), "{none:?}");
    Ok(())
}

#[tokio::test]
async fn a_repeat_goes_on_with_what_was_cut_off_under_the_same_key() -> Result<()> {
    for fault in [Fault::NoAnswer, Fault::Lost, Fault::AnswerLost] {
        let world = World::subscribed(Plan::Pro).await?;
        let id = Uuid::now_v7();
        world.memory.fail_next(fault);
        if fault == Fault::NoAnswer {
            tokio::select! {
                ended = world.end_as(id) => anyhow::bail!("it ended: {ended:?}"),
                () = world.memory.until_unanswered(1) => {}
            }
        }
        let ends = world.end_as(id).await?;
        assert_eq!(ends.cancel_time, world.at_stripe()?.cancel_at, "{fault:?}");
        assert_eq!(world.end_as(id).await?, ends);
        let sent = world.sent().await?;
        ensure!(matches!(sent[..], [(_, 1)]), "{fault:?}: {sent:?}");
        world.nothing_is_left().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_repeat_of_what_another_change_came_after_changes_nothing() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let id = Uuid::now_v7();
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        ended = world.end_as(id) => anyhow::bail!("it ended: {ended:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    world.go_on().await?;
    let late = world.end_as(id).await;
    ensure!(matches!(late, Err(Error::ChangeSuperseded(_))), "{late:?}");
    assert_eq!(world.at_stripe()?.cancel_at, None);
    world.nothing_is_left().await
}

#[tokio::test]
async fn what_was_refused_stays_so_for_its_request() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let id = Uuid::now_v7();
    world.memory.refuse_next();
    for _ in 0..2 {
        match world.end_as(id).await {
            Err(Error::StripeRefused(why)) => assert_eq!(why, "the card was declined"),
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert_eq!(world.at_stripe()?.cancel_at, None);
    ensure!(world.end_as(Uuid::now_v7()).await?.cancel_time.is_some());
    Ok(())
}

#[tokio::test]
async fn the_same_request_twice_at_once_changes_once() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let id = Uuid::now_v7();
    let answers = futures::future::join_all((0..4).map(|_| world.end_as(id))).await;
    for answer in answers {
        // One that lost the race is to call again.
        ensure!(matches!(answer, Ok(_) | Err(Error::StripeUnavailable(_))), "{answer:?}");
    }
    ensure!(world.end_as(id).await?.cancel_time.is_some());
    assert_eq!(world.sent().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_repeated_checkout_is_the_first_one() -> Result<()> {
    let world = World::new().await?;
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    world.memory.fail_next(Fault::AnswerLost);
    let left = world.checkout_as(one, Plan::Pro).await;
    ensure!(matches!(left, Err(Error::StripeUnavailable(_))), "{left:?}");
    let opened = world.checkout_as(one, Plan::Pro).await?;
    assert_eq!(world.memory.open_sessions(), [opened.session_id.as_str()]);
    assert_eq!(world.checkout_as(two, Plan::Pro).await?, opened);
    assert_eq!(field(world.checkout_as(one, Plan::Enterprise).await)?, "request_id");
    world.memory.go_through(&opened.session_id).context("a subscription")?;
    assert_eq!(world.checkout_as(one, Plan::Pro).await?, opened);
    let other = world.checkout_as(Uuid::now_v7(), Plan::Pro).await;
    ensure!(matches!(other, Err(Error::AlreadySubscribed(_))), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn a_change_of_plan_that_is_repeated_goes_on_with_what_was_cut_off() -> Result<()> {
    for fault in [Fault::NoAnswer, Fault::Lost, Fault::AnswerLost] {
        for (plan, apply_now) in
            [(Plan::Free, false), (Plan::Free, true), (Plan::Enterprise, false), (Plan::Pro, true)]
        {
            let world =
                World::subscribed(if plan == Plan::Pro { Plan::Enterprise } else { Plan::Pro }).await?;
            let id = Uuid::now_v7();
            world.memory.fail_next(fault);
            tokio::select! {
                _ = world.change_as(id, plan, apply_now) => {}
                () = world.memory.until_unanswered(1) => {}
            }
            let changed = world.change_as(id, plan, apply_now).await?;
            assert_eq!(world.change_as(id, plan, apply_now).await?, changed, "{fault:?} {plan}");
            let sent = world.sent().await?;
            ensure!(matches!(sent[..], [(_, 1)]), "{fault:?} {plan}: {sent:?}");
            world.nothing_is_left().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_plan_whose_answer_was_not_kept_is_not_begun_anew() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let id = Uuid::now_v7();
    world.change_as(id, Plan::Enterprise, false).await?;
    // It was cut off before the answer was kept; then the plan was changed back.
    sqlx::query("delete from eco_plan_requests").execute(&world.db.pool).await?;
    world.change(Plan::Pro, true).await?;
    world.change_as(id, Plan::Enterprise, false).await?;
    assert_eq!((world.account().await?.0, world.sent().await?.len()), ("pro".to_owned(), 2));
    assert_eq!(world.at_stripe()?.prices[0].id, "price_pro");
    // Nor once the account has no subscription at Stripe any more, where an admin could give the plan.
    sqlx::query("delete from eco_plan_requests").execute(&world.db.pool).await?;
    world.end(true).await?;
    let change = PlanChange { by_user: false, ..world.plan_change(id, Plan::Enterprise, false) };
    let late = change_plan::run(&world.sales, &change, "user:admin").await?;
    assert_eq!((late.account.plan, world.account().await?.0), (Plan::Free, "free".to_owned()));
    Ok(())
}

#[tokio::test]
async fn the_request_id_of_a_change_of_plan_is_no_others() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let (one, two, three) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    world.end_as(one).await?;
    assert_eq!(field(world.change_as(one, Plan::Free, false).await)?, "request_id");
    world.change_as(two, Plan::Enterprise, false).await?;
    assert_eq!(field(world.end_as(two).await)?, "request_id");
    assert_eq!(field(world.change_as(two, Plan::Pro, false).await)?, "request_id");
    // One that another change came after.
    world.memory.fail_next(Fault::NoAnswer);
    tokio::select! {
        changed = world.change_as(three, Plan::Pro, false) => anyhow::bail!("it ended: {changed:?}"),
        () = world.memory.until_unanswered(1) => {}
    }
    world.end(false).await?;
    let late = world.change_as(three, Plan::Pro, false).await;
    ensure!(matches!(late, Err(Error::ChangeSuperseded(_))), "{late:?}");
    ensure!(world.at_stripe()?.cancel_at.is_some());
    world.nothing_is_left().await
}

#[tokio::test]
async fn requests_that_change_nothing_are_kept_so_often_a_day() -> Result<()> {
    let world = World::subscribed(Plan::Pro).await?;
    let first = Uuid::now_v7();
    let going = world.go_on_as(first).await?;
    for seeded in [
        "insert into eco_sale_requests (eco_id, request_id, asked)
         select 'eco_a', gen_random_uuid(), '{\"kind\": \"go_on\"}' from generate_series(1, 998)",
        "insert into eco_plan_requests (eco_id, request_id, plan, apply_now, account_plan, apply_time)
         select 'eco_a', gen_random_uuid(), 'pro', false, 'pro', now() from generate_series(1, 1000)",
    ] {
        sqlx::query(seeded).execute(&world.db.pool).await?;
    }
    world.go_on_as(Uuid::now_v7()).await?;
    for refused in [
        world.go_on_as(Uuid::now_v7()).await.map(|_| ()),
        world.change_as(Uuid::now_v7(), Plan::Pro, false).await.map(|_| ()),
    ] {
        ensure!(matches!(refused, Err(Error::TooManyRequests { .. })), "{refused:?}");
    }
    let kept = "select count(*) from eco_sale_requests";
    assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&world.db.pool).await?, 1_000);
    // A repeat is no other one, without an id nothing is kept, and an end has its way.
    assert_eq!(world.go_on_as(first).await?, going);
    world.go_on().await?;
    ensure!(world.end_as(Uuid::now_v7()).await?.cancel_time.is_some());
    // Of an account without a subscription at Stripe, too.
    world.end(true).await?;
    let refused = world.change_as(Uuid::now_v7(), Plan::Free, false).await;
    ensure!(matches!(refused, Err(Error::TooManyRequests { .. })), "{refused:?}");
    Ok(())
}
