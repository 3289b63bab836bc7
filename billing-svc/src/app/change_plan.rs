//! Moves an account to another plan. What was counted before keeps the old plan's price: the open segment of the
//! current period is added up and closed, in one transaction with the change, while nobody counts calls of the
//! account. Usage-svc hears of the change by the trigger on the subscription. A subscription at Stripe is changed there
//! (see [`super::sales`]).

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{db, validate::Violations};
use sqlx::{PgConnection, PgPool};

use super::sales::{self, Sales};
use crate::{
    domain::{
        account::Account,
        of_a_day::{MAX_CHANGES, MAX_REQUESTS},
        period::PeriodKey,
        plan_change::{PlanChange, PlanChanged, Step, Subscription},
    },
    error::Error,
    store::{accounts, changes, facts, plan_requests, plans, segments, stripe_customers, subscriptions},
};

/// A repeat of a request returns the first answer.
pub async fn run(sales: &Sales, change: &PlanChange, actor: &str) -> Result<PlanChanged, Error> {
    // What was begun at Stripe goes on there, also once the account has no subscription there any more.
    if sales::change::is_begun(sales, change).await? {
        return sales::change::change_plan(sales, change, actor).await;
    }
    match here(&sales.pool, change, actor).await {
        Err(Error::SubscriptionAtStripe(_)) => sales::change::change_plan(sales, change, actor).await,
        changed => changed,
    }
}

/// Of an account without a subscription at Stripe.
async fn here(pool: &PgPool, change: &PlanChange, actor: &str) -> Result<PlanChanged, Error> {
    if let Some(answer) = unlocked(pool, change).await? {
        return Ok(answer);
    }
    loop {
        if let Some(answer) = locked(pool, change, actor).await? {
            return Ok(answer);
        }
    }
}

/// The answer, if there is nothing to change. Whoever asks for nothing holds up nobody who counts.
async fn unlocked(pool: &PgPool, change: &PlanChange) -> Result<Option<PlanChanged>, Error> {
    let mut transaction = db::begin(pool).await?;
    if let Some(answer) = answered_before(&mut transaction, change).await? {
        return Ok(Some(answer));
    }
    let subscription = changeable(&mut transaction, change).await?;
    let step = subscription.step(change.plan, change.apply_now);
    check_payer(change, step)?;
    if subscription.due().is_some() || step != Step::Nothing {
        return Ok(None);
    }
    let apply_time = subscription.apply_time(step);
    // Its plan as it was decided by.
    let account = Account { plan: subscription.plan, ..account(&mut transaction, &change.eco_id).await? };
    if !keep(&mut transaction, change, step, account.plan, apply_time).await? {
        return Ok(None);
    }
    transaction.commit().await?;
    Ok(Some(PlanChanged { account, apply_time }))
}

/// Decides anew, and changes, while nobody counts; nothing where the same request was answered meanwhile without the
/// lock.
async fn locked(pool: &PgPool, change: &PlanChange, actor: &str) -> Result<Option<PlanChanged>, Error> {
    let mut transaction = db::begin(pool).await?;
    subscriptions::seize(&mut transaction, &change.eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    if let Some(answer) = answered_before(&mut transaction, change).await? {
        return Ok(Some(answer));
    }
    let subscription = changeable(&mut transaction, change).await?;
    let subscription = without_due(&mut transaction, subscription).await?;
    let step = subscription.step(change.plan, change.apply_now);
    check_payer(change, step)?;
    take(&mut transaction, &subscription, step, change).await?;
    let apply_time = subscription.apply_time(step);
    let account = account(&mut transaction, &change.eco_id).await?;
    if !keep(&mut transaction, change, step, account.plan, apply_time).await? {
        return Ok(None);
    }
    transaction.commit().await?;
    Ok(Some(PlanChanged { account, apply_time }))
}

/// Keeps the answer of a request, if it is to be kept; false: it has one already. Of requests that change nothing a day has
/// so many.
async fn keep(
    db: &mut PgConnection,
    change: &PlanChange,
    step: Step,
    account_plan: Plan,
    apply_time: DateTime<Utc>,
) -> Result<bool, Error> {
    if !plan_requests::insert(db, change, account_plan, apply_time).await? {
        return Ok(false);
    }
    if change.request_id.is_some()
        && step == Step::Nothing
        && let Some(retry) = plan_requests::of_a_day(db, &change.eco_id).await?.beyond(MAX_REQUESTS)
    {
        return Err(Error::TooManyRequests { eco_id: change.eco_id.clone(), retry });
    }
    Ok(true)
}

/// A user pays for a plan at Stripe: it begins with a checkout.
fn check_payer(change: &PlanChange, step: Step) -> Result<(), Error> {
    let gets = matches!(step, Step::Now | Step::AtPeriodEnd) && change.plan != Plan::Free;
    if change.by_user && gets { Err(Error::CheckoutRequired(change.plan)) } else { Ok(()) }
}

pub(super) async fn account(db: &mut PgConnection, eco_id: &EcoId) -> Result<Account, Error> {
    let account = accounts::get(db, eco_id.as_str()).await?;
    account.ok_or_else(|| Error::AccountNotFound(eco_id.clone()))
}

/// The answer that a repeat of a request gets.
pub(super) async fn answered_before(
    db: &mut PgConnection,
    change: &PlanChange,
) -> Result<Option<PlanChanged>, Error> {
    let Some(request_id) = change.request_id else { return Ok(None) };
    let Some(answered) = plan_requests::get(db, &change.eco_id, request_id).await? else { return Ok(None) };
    if (answered.plan, answered.apply_now) != (change.plan, change.apply_now) {
        return Err(Violations::one("request_id", "was used for another change of the plan").into());
    }
    // The plan may have changed again.
    let account = Account { plan: answered.account_plan, ..account(db, &change.eco_id).await? };
    Ok(Some(PlanChanged { account, apply_time: answered.apply_time }))
}

/// The subscription, if its plan is ours to change.
async fn changeable(db: &mut PgConnection, change: &PlanChange) -> Result<Subscription, Error> {
    let found = subscriptions::get(db, &change.eco_id).await?;
    let subscription = found.ok_or_else(|| Error::AccountNotFound(change.eco_id.clone()))?;
    if subscription.closed_time.is_some() {
        return Err(Error::AccountClosed(change.eco_id.clone()));
    }
    if subscription.stripe_subscription_id.is_some() {
        return Err(Error::SubscriptionAtStripe(change.eco_id.clone()));
    }
    Ok(subscription)
}

/// Applies what has waited for a period's end that is over by now.
pub(super) async fn without_due(
    db: &mut PgConnection,
    subscription: Subscription,
) -> Result<Subscription, Error> {
    let Some(due) = subscription.due() else { return Ok(subscription) };
    segments::end_with_period(db, subscription.subscription_id).await?;
    subscriptions::apply_waiting(db, subscription.subscription_id).await?;
    Ok(Subscription { plan: due.plan, waiting: None, ..subscription })
}

async fn take(
    db: &mut PgConnection,
    subscription: &Subscription,
    step: Step,
    change: &PlanChange,
) -> Result<(), Error> {
    let id = subscription.subscription_id;
    match step {
        Step::Nothing => {}
        Step::Keep => {
            subscriptions::set_waiting(db, id, None).await?;
            // A newer version of the plan, if there is one.
            plans::hand_out(db, None, Some(id)).await?;
        }
        Step::AtPeriodEnd => {
            let version = newest_version(db, subscription, change.plan).await?;
            let waiting = (change.plan, version, subscription.period.end);
            subscriptions::set_waiting(db, id, Some(waiting)).await?;
        }
        Step::Now => {
            let version = newest_version(db, subscription, change.plan).await?;
            if change.plan != Plan::Free {
                stripe_customers::want(db, &change.eco_id).await?;
            }
            move_to(db, &change.eco_id, subscription, change.plan, version).await?;
            // Each leaves a segment. Back to free there is no more often than away from it, and always a way.
            let of_a_day = segments::of_a_day(db, &change.eco_id).await?;
            if let Some(retry) = of_a_day.beyond(MAX_CHANGES).filter(|_| change.plan != Plan::Free) {
                return Err(Error::TooManyChanges { eco_id: change.eco_id.clone(), retry });
            }
        }
    }
    Ok(())
}

/// The newest version of a plan, if it has a price in the account's currency.
pub(super) async fn newest_version(
    db: &mut PgConnection,
    subscription: &Subscription,
    plan: Plan,
) -> Result<i32, Error> {
    let newest = plans::newest(db, plan, subscription.currency).await?;
    if !newest.has_currency {
        let message = format!("must be a plan that has a price in {}", subscription.currency);
        return Err(Violations::one("plan", message).into());
    }
    Ok(newest.version)
}

/// Moves a subscription to a plan, now.
pub(super) async fn move_to(
    db: &mut PgConnection,
    eco_id: &EcoId,
    subscription: &Subscription,
    plan: Plan,
    version: i32,
) -> Result<(), Error> {
    close_segment(db, eco_id, subscription).await?;
    Ok(subscriptions::set_plan(db, subscription.subscription_id, plan, version).await?)
}

/// Adds up and closes the open segment of the subscription's period, by the terms that hold so far.
pub(super) async fn close_segment(
    db: &mut PgConnection,
    eco_id: &EcoId,
    subscription: &Subscription,
) -> Result<(), Error> {
    let period = PeriodKey { eco_id: eco_id.to_string(), start: subscription.period.start };
    let facts = facts::read(db, std::slice::from_ref(&period)).await?.pop();
    let facts = facts.ok_or_else(|| Error::AccountNotFound(eco_id.clone()))?;
    segments::close(db, &facts, subscription.now).await?;
    // The summary names the plan.
    Ok(changes::add(db, &period).await?)
}
