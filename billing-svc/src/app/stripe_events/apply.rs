//! One event: which object it leads to, and from there to which subscription.

use sqlx::PgConnection;

use super::{Context, Failure, sync::sync};
use crate::{
    domain::stripe_event::{Outcome, Topic},
    store::stripe_events::Job,
};

/// Brings our tables to how that stands which the event is about. To be committed, or rolled back where it fails.
pub async fn apply(db: &mut PgConnection, context: &Context, job: &Job) -> Result<Outcome, Failure> {
    let id = job.object_id.as_str();
    match Topic::of(&job.kind) {
        None => Ok(Outcome::NotHandled),
        Some(Topic::Subscription) => sync(db, context, id, None).await,
        Some(Topic::Checkout) => checkout(db, context, id).await,
        Some(Topic::Draft | Topic::Payment) => invoice(db, context, id).await,
    }
}

/// Links the account that a checkout was made for with what came of it.
async fn checkout(db: &mut PgConnection, context: &Context, id: &str) -> Result<Outcome, Failure> {
    context.pace.wait().await;
    let Some(session) = context.subscriptions.checkout_session(id).await? else { return Ok(Outcome::Gone) };
    match session.subscription.filter(|_| session.is_complete) {
        Some(subscription) => sync(db, context, &subscription, session.eco_id.as_deref()).await,
        None => Ok(Outcome::NotOurs),
    }
}

/// That an invoice was paid or not shows in its subscription's state.
async fn invoice(db: &mut PgConnection, context: &Context, id: &str) -> Result<Outcome, Failure> {
    context.pace.wait().await;
    let Some(invoice) = context.subscriptions.invoice(id).await? else { return Ok(Outcome::Gone) };
    match invoice.subscription {
        Some(subscription) => sync(db, context, &subscription, None).await,
        None => Ok(Outcome::NotOurs),
    }
}
