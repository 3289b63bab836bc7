//! Subscriptions: those that Stripe lists, and those that our tables have. An event of one may have been lost, by a restored
//! database or for good; then nobody reads it again by itself.
//!
//! The listing takes a request for each hundred of them. What seems to differ is read once more by itself, while nobody
//! else brings our tables to it. It is no difference while an event of it may still come: Stripe lists those of the last hour.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use nexus_kit::db;
use sqlx::PgConnection;

use super::{stripe::ask, work::Context};
use crate::{
    app::stripe_events::{Failure, look::look_at},
    domain::{
        reconciliation::Difference, stripe_objects::Subscription, stripe_subscription::PricedPlan,
        subscription_drift,
    },
    error::Error,
    payments::books::{Listing, Page},
    store::{listed_subscriptions, stripe_books, stripe_prices},
};

/// How long an event may take to come.
const EVENT_WITHIN: TimeDelta = TimeDelta::hours(1);
/// Subscriptions that are looked at once more, at most: beyond that something else is wrong than lost events.
const MOST_SUSPECTS: usize = 100_000;

/// Subscriptions that cannot be looked at, at most: beyond that it is Stripe, or we.
const MOST_UNREAD: usize = 20;

/// Compares all that accounts have now; earlier periods have nothing of theirs.
#[tracing::instrument(name = "reconcile.subscriptions", skip_all)]
pub(super) async fn compare(
    context: &Context,
    lease: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let scope = &context.begun.scope;
    if scope.period_time.is_some() {
        return Ok(());
    }
    listed_subscriptions::clear(lease).await?;
    let mut suspects = list(context, lease).await?;
    suspects.extend(listed_subscriptions::missing(lease, scope, MOST_SUSPECTS as i64).await?);
    listed_subscriptions::clear(lease).await?;
    if suspects.is_empty() {
        return Ok(());
    }
    let changed = changed(context, &suspects, now - EVENT_WITHIN).await?;
    let mut unread = 0;
    for id in suspects.iter().take(MOST_SUSPECTS) {
        let difference = match look(context, id).await? {
            Ok(difference) => difference,
            Err(why) if unread == MOST_UNREAD => return Err(Error::BooksUnread(why)),
            // It keeps no other from being compared, nor the ledger.
            Err(why) => {
                unread += 1;
                tracing::warn!(subscription = id, why, "a subscription could not be looked at");
                let ours = listed_subscriptions::ours(lease, &[(id.as_str(), "", None)]).await?;
                ours.into_iter().flatten().next().map(|ours| subscription_drift::unread(id, &ours, &why))
            }
        };
        if let Some(difference) = difference.filter(|_| !changed.contains(id)) {
            context.add(difference);
        }
    }
    // It is not to count as one that has compared everything.
    if suspects.len() <= MOST_SUSPECTS {
        Ok(())
    } else {
        Err(Error::TooManyDifferences(MOST_SUSPECTS as i64))
    }
}

/// Subscriptions that seem to differ; keeps which there are.
async fn list(context: &Context, db: &mut PgConnection) -> Result<BTreeSet<String>, Error> {
    let customers: Vec<Option<String>> = match &context.begun.scope.accounts {
        None => vec![None],
        Some(accounts) => stripe_books::customers(db, accounts).await?.into_iter().map(Some).collect(),
    };
    let plans = stripe_prices::all(db).await?;
    let mut suspects = BTreeSet::new();
    for customer in customers {
        let mut listing = Listing { customer, ..Listing::default() };
        loop {
            let Page { entries, next } =
                ask(context, || context.events.subscriptions.subscriptions(&listing)).await?;
            listed_subscriptions::insert(db, &entries).await?;
            if suspects.len() <= MOST_SUSPECTS {
                suspects.extend(suspicious(db, &entries, &plans).await?);
            }
            let Some(next) = next else { break };
            listing.after = Some(next);
        }
    }
    Ok(suspects)
}

/// Those of a page that seem to differ.
async fn suspicious(
    db: &mut PgConnection,
    found: &[Subscription],
    plans: &HashMap<String, PricedPlan>,
) -> Result<Vec<String>, Error> {
    let names: Vec<_> =
        found.iter().map(|s| (s.id.as_str(), s.customer.as_str(), s.eco_id.as_deref())).collect();
    let ours = listed_subscriptions::ours(db, &names).await?;
    let mut suspects = Vec::new();
    for (found, ours) in found.iter().zip(ours) {
        let Some(ours) = ours else { continue };
        let priced = found.prices.iter().find_map(|price| {
            let by_id = plans.get(&price.id);
            by_id.or_else(|| plans.get(price.lookup_key.as_ref()?)).copied()
        });
        if subscription_drift::compare(found, &ours, priced).is_some() {
            suspects.push(found.id.clone());
        }
    }
    Ok(suspects)
}

/// Those that have changed since, by Stripe's events: ours may be still to come.
async fn changed(
    context: &Context,
    suspects: &BTreeSet<String>,
    since: DateTime<Utc>,
) -> Result<HashSet<String>, Error> {
    let mut changed = HashSet::new();
    let mut listing = Listing { created_from: Some(since), ..Listing::default() };
    loop {
        let Page { entries, next } = ask(context, || context.events.subscriptions.changes(&listing)).await?;
        changed.extend(entries.into_iter().filter(|id| suspects.contains(id)));
        let Some(next) = next else { return Ok(changed) };
        listing.after = Some(next);
    }
}

/// Looks at one once more, and brings our tables to how it stands where that is asked for: before its event comes, too. An
/// error within: this one could not be looked at.
async fn look(context: &Context, id: &str) -> Result<Result<Option<Difference>, String>, Error> {
    let is_asked_for = |difference: &Difference| {
        let accounts = context.begun.scope.accounts.as_ref();
        accounts.is_none_or(|ids| ids.contains(&difference.eco_id))
    };
    match look_once(context, id, None).await? {
        Ok(Some(difference)) if !is_asked_for(&difference) => Ok(Ok(None)),
        Ok(Some(_)) if context.begun.repair => look_once(context, id, Some(&context.actor)).await,
        looked => Ok(looked),
    }
}

async fn look_once(
    context: &Context,
    id: &str,
    repairer: Option<&str>,
) -> Result<Result<Option<Difference>, String>, Error> {
    let looked = ask(context, || {
        Box::pin(async move {
            match look_at(&context.pool, &context.events, id, repairer).await {
                Err(Failure::Stripe(doubt)) => Err(doubt),
                looked => Ok(looked),
            }
        })
    });
    match looked.await {
        Ok(Ok(difference)) => Ok(Ok(difference)),
        // Whoever is at work on it brings our tables to it.
        Ok(Err(Failure::Busy)) => Ok(Ok(None)),
        Ok(Err(Failure::Own(Error::Database(error)))) if db::is_unavailable(&error) => Err(error.into()),
        Ok(Err(failure)) => Ok(Err(failure.to_string())),
        Err(Error::BooksUnread(why)) => Ok(Err(why)),
        Err(error) => Err(error),
    }
}
