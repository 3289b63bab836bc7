//! Changes of a subscription at Stripe: another plan, its end, that it goes on.

use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::db;
use serde::de::IgnoredAny;
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
        of_a_day::MAX_CHANGES,
        plan_change::{PlanChange, PlanChanged, Subscription},
        sale::{Asked, SaleRequest, ShownSubscription},
        stripe_change::{StepAtStripe, SubscriptionChange, WrittenChange, step, step_to_keep},
        stripe_objects,
    },
    error::Error,
    store::{plan_requests, stripe_changes, stripe_prices, subscriptions},
};

/// What is wanted of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// That the account has this plan; a lower one now, and not from the period's end on.
    Plan(Plan, bool),
    /// That the account keeps the plan it has: neither an end nor another plan waits for the period's end.
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
    /// Whether it is to end by a date.
    ends_by_date: bool,
}

/// What a price is changed on.
struct Offer {
    plan: Plan,
    item_id: String,
    price_id: String,
}

/// Whether the same request came before, of an account whose subscription was at Stripe.
pub async fn is_begun(sales: &Sales, change: &PlanChange) -> Result<bool, Error> {
    Ok(requests::before::<IgnoredAny>(sales, &request_of(change)).await?.is_some())
}

/// Moves an account to another plan whose subscription is at Stripe. A repeat of a request returns the first answer, or goes
/// on with the change that was begun for it.
pub async fn change_plan(sales: &Sales, change: &PlanChange, actor: &str) -> Result<PlanChanged, Error> {
    if let Some(answer) = {
        let mut connection = db::acquire(&sales.pool).await?;
        answered_before(&mut connection, change).await?
    } {
        return Ok(answer);
    }
    let request = request_of(change);
    match requests::before::<IgnoredAny>(sales, &request).await? {
        Some(Before::Begun(Some(change_id))) => requests::follow(sales, change_id).await?,
        Some(Before::Begun(None) | Before::Answered(_)) => {}
        None => {
            let wanted = Wanted::Plan(change.plan, change.apply_now);
            ask(sales, &change.eco_id, wanted, &request, actor).await?;
        }
    }
    let mut transaction = db::begin(&sales.pool).await?;
    let account = account(&mut transaction, &change.eco_id).await?;
    let subscription = subscriptions::get(&mut transaction, &change.eco_id).await?;
    let unknown = || Error::AccountNotFound(change.eco_id.clone());
    let apply_time = subscription.ok_or_else(unknown)?.in_force(change.plan);
    if !plan_requests::insert(&mut transaction, change, account.plan, apply_time).await?
        && let Some(answer) = answered_before(&mut transaction, change).await?
    {
        return Ok(answer);
    }
    transaction.commit().await?;
    Ok(PlanChanged { account, apply_time })
}

/// A change of plan as a request that is kept with what it leads to at Stripe; its answer is kept with those of all changes.
fn request_of(change: &PlanChange) -> SaleRequest {
    let &PlanChange { plan, apply_now, request_id, .. } = change;
    SaleRequest { eco_id: change.eco_id.clone(), asked: Asked::Plan { plan, apply_now }, request_id }
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
        None => ask(sales, &request.eco_id, wanted, request, actor).await?,
    }
    let shown = get_subscription::run(&sales.pool, &request.eco_id).await?;
    requests::answer(sales, request, shown).await
}

async fn ask(
    sales: &Sales,
    eco_id: &EcoId,
    wanted: Wanted,
    request: &SaleRequest,
    actor: &str,
) -> Result<(), Error> {
    let none = || Error::NoSubscription(eco_id.clone());
    let id = sales.subscription(eco_id).await?.stripe_subscription_id.ok_or_else(none)?;
    // Decided by how it stands, and not by the last that was heard of it.
    sales.bring_up(&id, None).await?;
    let subscription = sales.subscription(eco_id).await?;
    if subscription.stripe_subscription_id.as_ref() != Some(&id) {
        return Err(none());
    }
    let plan = match wanted {
        Wanted::Plan(plan, _) => plan,
        Wanted::GoOn => subscription.plan,
    };
    let needs_offer = plan != Plan::Free && plan_is_other(&subscription, plan);
    let found = if needs_offer || subscription.cancel_time.is_some() {
        sales.events.pace.wait().await;
        sales.events.subscriptions.subscription(&id).await?
    } else {
        None
    };
    let ends_by_date = found.as_ref().is_some_and(|found| found.ends_by_date);
    let offer = if needs_offer { Some(offer(sales, &subscription, found, plan).await?) } else { None };
    let seen = Seen { id, wanted, offer, ends_by_date };
    match write_down(sales, eco_id, seen, request, actor).await? {
        Written::Change(change) => carry_out(sales, &change).await?.done(),
        Written::Nothing => Ok(()),
        // Another change came between the two looks.
        Written::Otherwise => Err(Error::StripeUnavailable("the subscription is being changed".to_owned())),
    }
}

fn plan_is_other(subscription: &Subscription, plan: Plan) -> bool {
    plan != subscription.plan || subscription.waiting.is_some_and(|waiting| waiting.plan != plan)
}

/// The item that has a plan's price, and the price that it is to have.
async fn offer(
    sales: &Sales,
    subscription: &Subscription,
    found: Option<stripe_objects::Subscription>,
    plan: Plan,
) -> Result<Offer, Error> {
    let price_id = sales.price(plan, subscription.currency).await?;
    let mut connection = db::acquire(&sales.pool).await?;
    for price in found.map(|found| found.prices).unwrap_or_default() {
        if stripe_prices::find(&mut connection, std::slice::from_ref(&price)).await?.is_some() {
            return Ok(Offer { plan, item_id: price.item_id, price_id });
        }
    }
    Err(Error::StripeUnavailable("the subscription has no item of a plan".to_owned()))
}

/// What was written down.
enum Written {
    /// This is to be sent.
    Change(WrittenChange),
    /// It is so already.
    Nothing,
    /// It is not as it was looked at.
    Otherwise,
}

/// Writes down what is to be sent, if anything.
async fn write_down(
    sales: &Sales,
    eco_id: &EcoId,
    seen: Seen,
    request: &SaleRequest,
    actor: &str,
) -> Result<Written, Error> {
    let id = seen.id.clone();
    let mut transaction = db::begin(&sales.pool).await?;
    subscriptions::seize(&mut transaction, eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    let current = subscriptions::get(&mut transaction, eco_id).await?;
    let Some(current) = current.filter(|now| now.stripe_subscription_id.as_ref() == Some(&id)) else {
        return Ok(Written::Otherwise);
    };
    if current.closed_time.is_some() {
        return Err(Error::AccountClosed(eco_id.clone()));
    }
    let current = without_due(&mut transaction, current).await?;
    let change = match what(&mut transaction, &current, seen).await? {
        What::Change(change) => Some(change),
        What::Nothing => None,
        What::Otherwise => return Ok(Written::Otherwise),
    };
    let written = match change {
        Some(change) => Some(insert(&mut transaction, eco_id, &id, change).await?),
        None => None,
    };
    let change_id = written.as_ref().map(|written| written.change_id);
    if !requests::keep(&mut transaction, request, change_id).await? {
        return Ok(Written::Otherwise);
    }
    transaction.commit().await?;
    Ok(written.map_or(Written::Nothing, Written::Change))
}

/// Writes a change down, within the bounds of a day.
async fn insert(
    db: &mut PgConnection,
    eco_id: &EcoId,
    id: &str,
    change: SubscriptionChange,
) -> Result<WrittenChange, Error> {
    let written = stripe_changes::insert(db, eco_id, id, &change, OWN_TIME).await?;
    if written.change != change {
        // It is being ended, which nothing takes back.
        return Err(Error::NoSubscription(eco_id.clone()));
    }
    // There are no more ends than changes that take one back, so that whoever would stop paying always can.
    match stripe_changes::of_a_day(db, eco_id).await?.beyond(MAX_CHANGES).filter(|_| !change.is_end()) {
        Some(retry) => Err(Error::TooManyChanges { eco_id: eco_id.clone(), retry }),
        None => Ok(written),
    }
}

/// What is to be asked for.
enum What {
    Change(SubscriptionChange),
    /// It is so already.
    Nothing,
    /// It is not as it was looked at.
    Otherwise,
}

/// What is to be asked for. A plan that waits for the period's end is written down with it.
async fn what(db: &mut PgConnection, current: &Subscription, seen: Seen) -> Result<What, Error> {
    let by_date = seen.ends_by_date;
    let (plan, step) = match seen.wanted {
        Wanted::Plan(plan, apply_now) => (plan, step(current, plan, apply_now, by_date)),
        Wanted::GoOn => (current.plan, step_to_keep(current)),
    };
    Ok(What::Change(match step {
        StepAtStripe::Nothing => return Ok(What::Nothing),
        StepAtStripe::GoOn => SubscriptionChange::GoOn { by_date },
        StepAtStripe::End { now: true } => SubscriptionChange::EndNow,
        StepAtStripe::End { now: false } => SubscriptionChange::EndWithPeriod,
        StepAtStripe::Price { is_prorated, waits } => {
            let Some(Offer { item_id, price_id, .. }) = seen.offer.filter(|offer| offer.plan == plan) else {
                return Ok(What::Otherwise);
            };
            if waits {
                let version = newest_version(db, current, plan).await?;
                let waiting = (plan, version, current.period.end);
                subscriptions::set_waiting(db, current.subscription_id, Some(waiting)).await?;
            }
            SubscriptionChange::Price { plan, item_id, price_id, is_prorated, by_date }
        }
    }))
}
