//! A subscription: our tables are brought to how it stands at Stripe.

use std::time::Duration;

use nexus_core::{
    id::EcoId,
    period::Period,
    plan::{Plan, SubscriptionStatus},
};
use nexus_kit::db;
use sqlx::PgConnection;

use super::{
    Context, Failure,
    period::{enter, leave},
    settle::Applied,
};
use crate::{
    app::change_plan::{close_segment, move_to, without_due},
    domain::{
        plan_change::Subscription,
        stripe_change::SubscriptionChange,
        stripe_event::Outcome,
        stripe_objects::{self, Price},
        stripe_subscription::{
            Decision, Held, PricedPlan, anchor_by, anchor_without_stripe, decide, is_over, is_same,
            superseded,
        },
    },
    error::Error,
    store::{
        ended_subscriptions, lease, plans, stripe_changes, stripe_events, stripe_prices,
        stripe_subscriptions::{self, Beginning},
        subscriptions,
    },
};

/// What became of a subscription.
pub(super) enum Synced {
    /// Our tables are as it is.
    Applied {
        /// Whose it is.
        eco_id: EcoId,
        /// Whether it is the one in force.
        in_force: bool,
    },
    /// It is of no account of ours.
    NotOurs,
    /// It is not at Stripe.
    Gone,
}

impl From<Synced> for Applied {
    fn from(synced: Synced) -> Self {
        match synced {
            Synced::Applied { .. } => Outcome::Applied.into(),
            Synced::NotOurs => Outcome::NotOurs.into(),
            Synced::Gone => Outcome::Gone.into(),
        }
    }
}

/// The account is that which has the subscription or its customer, else the one that is named: by whoever leads here
/// (`named`), by the subscription, or by the customer.
pub(super) async fn sync(
    db: &mut PgConnection,
    context: &Context,
    id: &str,
    named: Option<&str>,
) -> Result<Synced, Failure> {
    // Read once nobody else writes it, and written before anybody else reads it.
    if !lease::try_stripe_object(db, id).await? {
        return Err(Failure::Busy);
    }
    sync_alone(db, context, id, named).await
}

/// The same for who has the subscription alone, until the transaction ends.
pub(super) async fn sync_alone(
    db: &mut PgConnection,
    context: &Context,
    id: &str,
    named: Option<&str>,
) -> Result<Synced, Failure> {
    context.pace.wait().await;
    let Some(found) = context.subscriptions.subscription(id).await? else { return Ok(Synced::Gone) };
    bring_found(db, context, &found, named).await
}

/// The same for one that was read since.
pub(super) async fn bring_found(
    db: &mut PgConnection,
    context: &Context,
    found: &stripe_objects::Subscription,
    named: Option<&str>,
) -> Result<Synced, Failure> {
    let id = found.id.as_str();
    let Some(eco_id) = account_of(db, context, found, named).await? else { return Ok(Synced::NotOurs) };
    if is_of_another_product(db, &eco_id, found, named).await? {
        return Ok(Synced::NotOurs);
    }
    subscriptions::seize(db, &eco_id).await?;
    let current = subscriptions::get(db, &eco_id).await?.ok_or_else(|| unknown(&eco_id))?;
    let rows = stripe_subscriptions::list(db, &eco_id).await?;
    let account = Account { eco_id: &eco_id, current, rows: &rows };
    let decision = decide(found, &rows, account.current.closed_time.is_some());
    bring(db, &account, found, decision.clone()).await?;
    let in_force = matches!(decision, Decision::Keep(_) | Decision::Begin(_));
    let has_ended = matches!(decision, Decision::End(_));
    set_customer(db, &account, found, !in_force && !has_ended).await?;
    if has_ended {
        // One that was superseded and is still there comes into force again. It is to be read by itself: Stripe is not
        // waited for while nobody can count calls of the account.
        for other in superseded(&rows, id) {
            if !stripe_events::apply_again(db, other).await? {
                stripe_events::look_at(db, other, &format!("end-of-{id}")).await?;
            }
        }
    }
    if account.current.closed_time.is_some() && !is_over(found) {
        // Nobody pays for an account that is closed.
        let end = SubscriptionChange::EndNow;
        stripe_changes::insert(db, &eco_id, id, &end, Duration::ZERO).await?;
    }
    if is_over(found) {
        // What is to be settled, collected and taken off its drafts, whatever else the account has by now.
        let ended = found.ended.unwrap_or(account.current.now).min(account.current.now);
        ended_subscriptions::note(db, &eco_id, &found.id, ended).await?;
    }
    Ok(Synced::Applied { eco_id, in_force })
}

/// Whether a subscription is of something else that the account's customer has: none of its prices is of a plan, nothing
/// names the account but the customer, and the account never had it. With a name it is meant for us, and its prices are
/// missing in our table.
async fn is_of_another_product(
    db: &mut PgConnection,
    eco_id: &EcoId,
    found: &stripe_objects::Subscription,
    named: Option<&str>,
) -> sqlx::Result<bool> {
    if named.is_some() || found.eco_id.is_some() || stripe_prices::find(db, &found.prices).await?.is_some() {
        return Ok(false);
    }
    let rows = stripe_subscriptions::list(db, eco_id).await?;
    Ok(rows.iter().all(|row| row.stripe_id.as_ref() != Some(&found.id)))
}

/// An account that is seized.
struct Account<'a> {
    eco_id: &'a EcoId,
    /// The subscription in force.
    current: Subscription,
    rows: &'a [Held],
}

async fn account_of(
    db: &mut PgConnection,
    context: &Context,
    found: &stripe_objects::Subscription,
    named: Option<&str>,
) -> Result<Option<EcoId>, Failure> {
    let known = stripe_subscriptions::account_of(db, found).await?;
    let mut name = known.or(named.map(str::to_owned)).or(found.eco_id.clone());
    if name.is_none() {
        context.pace.wait().await;
        name = context.subscriptions.customer(&found.customer).await?.and_then(|customer| customer.eco_id);
    }
    // Checkouts of others may have references of any form.
    Ok(name.and_then(|name| EcoId::parse(&name).ok()))
}

async fn bring(
    db: &mut PgConnection,
    account: &Account<'_>,
    found: &stripe_objects::Subscription,
    decision: Decision<'_>,
) -> Result<(), Failure> {
    match decision {
        Decision::Nothing => Ok(()),
        Decision::Note(row) => {
            Ok(stripe_subscriptions::set_status(db, row.subscription_id, found, false).await?)
        }
        Decision::Record => record(db, account, found).await,
        Decision::Keep(row) => keep(db, account, row, found).await,
        Decision::Begin(_) => begin(db, account, found).await,
        Decision::End(row) => end(db, account, row, found).await,
    }
}

/// Plan, state and periods of the subscription in force.
async fn keep(
    db: &mut PgConnection,
    account: &Account<'_>,
    row: &Held,
    found: &stripe_objects::Subscription,
) -> Result<(), Failure> {
    let priced = priced(db, found).await?;
    let current = without_due(db, account.current.clone()).await?;
    follow_plan(db, account, &current, row, priced).await?;
    let other_limits = row.status.grants_plan() != found.status.grants_plan();
    if other_limits {
        // Overage accrues only while the plan is granted.
        close_segment(db, account.eco_id, &account.current).await?;
    }
    stripe_subscriptions::set_status(db, row.subscription_id, found, other_limits).await?;
    let anchor = anchor_by(found.anchor, current.now);
    let next = Period::containing(anchor, current.now);
    if !is_same(current.period, next) {
        leave(db, account.eco_id, &current, next, anchor).await?;
        stripe_subscriptions::set_anchor(db, row.subscription_id, anchor).await?;
        let plan = (current.plan, row.plan_version);
        enter(db, account.eco_id, next, plan).await?;
    }
    Ok(())
}

/// The plan that is paid for, at once. Where it waits for the period's end already, it goes on waiting; one that waits and is
/// neither paid for at Stripe nor on its way there does not come.
async fn follow_plan(
    db: &mut PgConnection,
    account: &Account<'_>,
    current: &Subscription,
    row: &Held,
    priced: PricedPlan,
) -> Result<(), Error> {
    let waits = current.waiting.is_some_and(|waiting| waiting.plan == priced.plan);
    let other_version = priced.version.is_some_and(|version| version != row.plan_version);
    if waits {
        return Ok(());
    }
    if priced.plan == current.plan && !other_version {
        return stay(db, current).await;
    }
    let version = version_of(db, current, priced).await?;
    move_to(db, account.eco_id, current, priced.plan, version).await
}

/// The account keeps the plan that it pays for, unless a lower one is being asked for at this moment.
async fn stay(db: &mut PgConnection, current: &Subscription) -> Result<(), Error> {
    let is_orphan = current.waiting.is_some_and(|waiting| waiting.plan < current.plan);
    let Some(at_stripe) = current.stripe_subscription_id.as_ref().filter(|_| is_orphan) else {
        return Ok(());
    };
    if stripe_changes::open(db, at_stripe).await?.is_none() {
        subscriptions::set_waiting(db, current.subscription_id, None).await?;
        plans::hand_out(db, None, Some(current.subscription_id)).await?;
    }
    Ok(())
}

/// It comes into force: a period of its own begins, and what the account had ends.
async fn begin(
    db: &mut PgConnection,
    account: &Account<'_>,
    found: &stripe_objects::Subscription,
) -> Result<(), Failure> {
    let priced = priced(db, found).await?;
    let current = without_due(db, account.current.clone()).await?;
    let version = version_of(db, &current, priced).await?;
    let mut anchor = anchor_by(found.anchor, current.now);
    let next = Period::containing(anchor, current.now);
    let at = leave(db, account.eco_id, &current, next, anchor.max(found.created)).await?;
    if is_same(current.period, next) {
        anchor = present(account).map_or(anchor, |row| row.anchor);
    }
    stripe_subscriptions::end(db, current.subscription_id, None, at).await?;
    let beginning = Beginning {
        plan: priced.plan,
        version,
        status: found.status,
        anchor,
        at,
        at_stripe: Some((&found.id, found.created)),
        cancel: found.cancel_at,
    };
    stripe_subscriptions::begin(db, account.eco_id, beginning).await?;
    Ok(enter(db, account.eco_id, Period::containing(anchor, current.now), (priced.plan, version)).await?)
}

/// It has ended: the account is on the free plan again, in the period and with the count that it would have had.
async fn end(
    db: &mut PgConnection,
    account: &Account<'_>,
    row: &Held,
    found: &stripe_objects::Subscription,
) -> Result<(), Failure> {
    let mut current = without_due(db, account.current.clone()).await?;
    // What it was of last, where that was not heard before. A price that is not known any more ends nothing later.
    if let Some(priced) = stripe_prices::find(db, &found.prices).await?
        && priced.plan != current.plan
    {
        follow_plan(db, account, &current, row, priced).await?;
        current.plan = priced.plan;
    }
    let ended = found.ended.unwrap_or(current.now).min(current.now);
    let anchor = anchor_without_stripe(account.rows).unwrap_or(row.anchor);
    let next = Period::containing(anchor, current.now);
    let at = leave(db, account.eco_id, &current, next, ended).await?;
    stripe_subscriptions::set_status(db, row.subscription_id, found, false).await?;
    stripe_subscriptions::end(db, row.subscription_id, Some(found.status), ended).await?;
    let free = plans::newest(db, Plan::Free, current.currency).await?;
    let beginning = Beginning {
        plan: Plan::Free,
        version: free.version,
        status: SubscriptionStatus::Active,
        anchor,
        at,
        at_stripe: None,
        cancel: None,
    };
    stripe_subscriptions::begin(db, account.eco_id, beginning).await?;
    Ok(enter(db, account.eco_id, next, (Plan::Free, free.version)).await?)
}

/// It was over before it was heard of, and nothing is counted by it.
async fn record(
    db: &mut PgConnection,
    account: &Account<'_>,
    found: &stripe_objects::Subscription,
) -> Result<(), Failure> {
    let Some(priced) = stripe_prices::find(db, &found.prices).await? else { return Ok(()) };
    let now = account.current.now;
    let over = Beginning {
        plan: priced.plan,
        version: version_of(db, &account.current, priced).await?,
        status: found.status,
        anchor: anchor_by(found.anchor, now),
        at: found.ended.unwrap_or(now).min(now),
        at_stripe: Some((&found.id, found.created)),
        cancel: found.cancel_at,
    };
    Ok(stripe_subscriptions::record(db, account.eco_id, over).await?)
}

async fn set_customer(
    db: &mut PgConnection,
    account: &Account<'_>,
    found: &stripe_objects::Subscription,
    or_keep: bool,
) -> Result<(), Failure> {
    let set = stripe_subscriptions::set_customer(db, account.eco_id, &found.customer, or_keep).await;
    set.map_err(|error| {
        if db::violates(&error, "eco_identities_stripe_customer_id_key") {
            Failure::Refused(format!("the customer {} is another account's", found.customer))
        } else {
            error.into()
        }
    })
}

async fn priced(db: &mut PgConnection, found: &stripe_objects::Subscription) -> Result<PricedPlan, Failure> {
    let names = || found.prices.iter().map(|Price { id, .. }| id.as_str()).collect::<Vec<_>>().join(", ");
    stripe_prices::find(db, &found.prices).await?.ok_or_else(|| {
        Failure::Refused(format!(
            "no plan is known of the prices ({}) of {}: see eco_stripe_prices",
            names(),
            found.id
        ))
    })
}

async fn version_of(db: &mut PgConnection, current: &Subscription, priced: PricedPlan) -> sqlx::Result<i32> {
    match priced.version {
        Some(version) => Ok(version),
        None => Ok(plans::newest(db, priced.plan, current.currency).await?.version),
    }
}

fn present<'a>(account: &Account<'a>) -> Option<&'a Held> {
    account.rows.iter().find(|row| row.is_current)
}

fn unknown(eco_id: &EcoId) -> Failure {
    Failure::Refused(format!("account {eco_id}, which Stripe names, does not exist"))
}
