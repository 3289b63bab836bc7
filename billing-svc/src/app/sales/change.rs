//! Changes of a subscription at Stripe: another plan, its end, that it goes on.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::db;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Sales,
    carry_out::carry_out,
    requests::{self, Before},
    worker::OWN_TIME,
};
use crate::{
    app::{
        change_plan::{account, answered_before, newest_version, without_due},
        get_subscription,
    },
    domain::{
        plan_change::{PlanChange, PlanChanged, Subscription},
        sale::{Asked, SaleRequest, ShownSubscription},
        stripe_change::{StepAtStripe, SubscriptionChange, WrittenChange, step},
    },
    error::Error,
    store::{plan_requests, stripe_changes, stripe_prices, subscriptions},
};

/// What is wanted of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// That the account has this plan; a lower one now, and not from the period's end on.
    Plan(Plan, bool),
    /// That it goes on as it is.
    GoOn,
}

/// What was looked at before anything is written down.
struct Seen {
    /// The subscription at Stripe.
    id: String,
    /// What is wanted of it.
    wanted: Wanted,
    /// What a change of its price takes.
    offer: Option<Offer>,
}

/// What a price is changed on.
struct Offer {
    item_id: String,
    price_id: String,
}

/// Moves an account to another plan whose subscription is at Stripe. A repeat of a request returns the first answer.
pub async fn change_plan(sales: &Sales, change: &PlanChange, actor: &str) -> Result<PlanChanged, Error> {
    if let Some(answer) = {
        let mut connection = db::acquire(&sales.pool).await?;
        answered_before(&mut connection, change).await?
    } {
        return Ok(answer);
    }
    let apply_time =
        ask(sales, &change.eco_id, Wanted::Plan(change.plan, change.apply_now), None, actor).await?;
    let mut transaction = db::begin(&sales.pool).await?;
    let account = account(&mut transaction, &change.eco_id).await?;
    if !plan_requests::insert(&mut transaction, change, account.plan, apply_time).await?
        && let Some(answer) = answered_before(&mut transaction, change).await?
    {
        return Ok(answer);
    }
    transaction.commit().await?;
    Ok(PlanChanged { account, apply_time })
}

/// Has the account's subscription end, with its billing period or now. A repeat of a request returns the first answer.
pub async fn end(
    sales: &Sales,
    eco_id: &EcoId,
    apply_now: bool,
    request_id: Option<Uuid>,
    actor: &str,
) -> Result<ShownSubscription, Error> {
    let request = SaleRequest { eco_id: eco_id.clone(), asked: Asked::End { apply_now }, request_id };
    once(sales, &request, Wanted::Plan(Plan::Free, apply_now), actor).await
}

/// Has a subscription that is to end go on. A repeat of a request returns the first answer.
pub async fn go_on(
    sales: &Sales,
    eco_id: &EcoId,
    request_id: Option<Uuid>,
    actor: &str,
) -> Result<ShownSubscription, Error> {
    let request = SaleRequest { eco_id: eco_id.clone(), asked: Asked::GoOn, request_id };
    once(sales, &request, Wanted::GoOn, actor).await
}

async fn once(
    sales: &Sales,
    request: &SaleRequest,
    wanted: Wanted,
    actor: &str,
) -> Result<ShownSubscription, Error> {
    match requests::before(sales, request).await? {
        Some(Before::Answered(answer)) => return Ok(answer),
        Some(Before::Begun(Some(change_id))) => requests::follow(sales, change_id).await?,
        Some(Before::Begun(None)) => {}
        None => {
            ask(sales, &request.eco_id, wanted, Some(request), actor).await?;
        }
    }
    let shown = get_subscription::run(&sales.pool, &request.eco_id).await?;
    requests::answer(sales, request, shown).await
}

/// Returns from when on it is so.
async fn ask(
    sales: &Sales,
    eco_id: &EcoId,
    wanted: Wanted,
    request: Option<&SaleRequest>,
    actor: &str,
) -> Result<DateTime<Utc>, Error> {
    let none = || Error::NoSubscription(eco_id.clone());
    let id = sales.subscription(eco_id).await?.stripe_subscription_id.ok_or_else(none)?;
    // Decided by how it stands, and not by the last that was heard of it.
    sales.bring_up(&id, None).await?;
    let subscription = sales.subscription(eco_id).await?;
    if subscription.stripe_subscription_id.as_ref() != Some(&id) {
        return Err(none());
    }
    let offer = match wanted {
        Wanted::Plan(plan, _) if plan != Plan::Free && plan_is_other(&subscription, plan) => {
            Some(offer(sales, &subscription, &id, plan).await?)
        }
        Wanted::Plan(..) | Wanted::GoOn => None,
    };
    let seen = Seen { id, wanted, offer };
    let Some((apply_time, written)) = write_down(sales, eco_id, seen, request, actor).await? else {
        // Another change came between the two looks.
        return Err(Error::StripeUnavailable("the subscription is being changed".to_owned()));
    };
    let Some(written) = written else { return Ok(apply_time) };
    carry_out(sales, &written).await?.done()?;
    match written.change {
        SubscriptionChange::EndWithPeriod => {
            Ok(sales.subscription(eco_id).await?.cancel_time.unwrap_or(apply_time))
        }
        _ => Ok(apply_time),
    }
}

fn plan_is_other(subscription: &Subscription, plan: Plan) -> bool {
    plan != subscription.plan || subscription.waiting.is_some_and(|waiting| waiting.plan != plan)
}

/// The item that has a plan's price, and the price that it is to have.
async fn offer(sales: &Sales, subscription: &Subscription, id: &str, plan: Plan) -> Result<Offer, Error> {
    let price_id = sales.price(plan, subscription.currency).await?;
    sales.events.pace.wait().await;
    let found = sales.events.subscriptions.subscription(id).await?;
    let mut connection = db::acquire(&sales.pool).await?;
    for price in found.map(|found| found.prices).unwrap_or_default() {
        if stripe_prices::find(&mut connection, std::slice::from_ref(&price)).await?.is_some() {
            return Ok(Offer { item_id: price.item_id, price_id });
        }
    }
    Err(Error::StripeUnavailable("the subscription has no item of a plan".to_owned()))
}

/// Writes down what is to be sent, if anything, and from when on it is so. `None`: it is not as it was looked at.
async fn write_down(
    sales: &Sales,
    eco_id: &EcoId,
    Seen { id, wanted, offer }: Seen,
    request: Option<&SaleRequest>,
    actor: &str,
) -> Result<Option<(DateTime<Utc>, Option<WrittenChange>)>, Error> {
    let mut transaction = db::begin(&sales.pool).await?;
    subscriptions::seize(&mut transaction, eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    let current = subscriptions::get(&mut transaction, eco_id).await?;
    let Some(current) = current.filter(|now| now.stripe_subscription_id.as_ref() == Some(&id)) else {
        return Ok(None);
    };
    if current.closed_time.is_some() {
        return Err(Error::AccountClosed(eco_id.clone()));
    }
    let current = without_due(&mut transaction, current).await?;
    let step = match wanted {
        Wanted::Plan(plan, apply_now) => step(&current, plan, apply_now),
        Wanted::GoOn if current.cancel_time.is_some() => StepAtStripe::GoOn,
        Wanted::GoOn => StepAtStripe::Nothing,
    };
    let Some((change, apply_time)) = what(&mut transaction, &current, wanted, step, offer).await? else {
        return Ok(None);
    };
    let written = match change {
        Some(change) => {
            let written = stripe_changes::insert(&mut transaction, eco_id, &id, &change, OWN_TIME).await?;
            if written.change != change {
                // It is being ended, which nothing takes back.
                return Err(Error::NoSubscription(eco_id.clone()));
            }
            Some(written)
        }
        None => None,
    };
    if let Some(request) = request
        && !requests::keep(&mut transaction, request, written.as_ref().map(|w| w.change_id)).await?
    {
        return Ok(None);
    }
    transaction.commit().await?;
    Ok(Some((apply_time, written)))
}

/// What is asked for, and from when on it is so. A plan that waits for the period's end is written down with it.
async fn what(
    db: &mut PgConnection,
    current: &Subscription,
    wanted: Wanted,
    step: StepAtStripe,
    offer: Option<Offer>,
) -> Result<Option<(Option<SubscriptionChange>, DateTime<Utc>)>, Error> {
    let now = current.now;
    Ok(match (step, wanted) {
        (StepAtStripe::Nothing, Wanted::Plan(Plan::Free, _)) => {
            Some((None, current.cancel_time.unwrap_or(now)))
        }
        (StepAtStripe::Nothing, Wanted::Plan(plan, _)) => {
            let waits = current.waiting.filter(|waiting| plan != current.plan && waiting.plan == plan);
            Some((None, waits.map_or(now, |waiting| waiting.time)))
        }
        (StepAtStripe::Nothing, Wanted::GoOn) => Some((None, now)),
        (StepAtStripe::GoOn, _) => Some((Some(SubscriptionChange::GoOn), now)),
        (StepAtStripe::End { now: true }, _) => Some((Some(SubscriptionChange::EndNow), now)),
        (StepAtStripe::End { now: false }, _) => {
            Some((Some(SubscriptionChange::EndWithPeriod), current.period.end))
        }
        (StepAtStripe::Price { is_prorated, waits }, Wanted::Plan(plan, _)) => {
            let Some(Offer { item_id, price_id }) = offer else { return Ok(None) };
            if waits {
                let version = newest_version(db, current, plan).await?;
                let waiting = (plan, version, current.period.end);
                subscriptions::set_waiting(db, current.subscription_id, Some(waiting)).await?;
            }
            let change = SubscriptionChange::Price { plan, item_id, price_id, is_prorated };
            Some((Some(change), if waits { current.period.end } else { now }))
        }
        (StepAtStripe::Price { .. }, Wanted::GoOn) => None,
    })
}
