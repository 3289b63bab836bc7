//! One event: which object it leads to, and from there to which subscription.

use sqlx::PgConnection;

use super::{
    Context, Failure,
    settle::Applied,
    sync::{Synced, sync},
};
use crate::{
    app::settle_draft::Draft,
    domain::{
        stripe_event::{Outcome, Topic},
        stripe_objects::CheckoutState,
    },
    store::stripe_events::Job,
};

/// Brings our tables to how that stands which the event is about. To be committed, or rolled back where it fails; what is
/// to be settled then, after the commit.
pub async fn apply(db: &mut PgConnection, context: &Context, job: &Job) -> Result<Applied, Failure> {
    let id = job.object_id.as_str();
    match Topic::of(&job.kind) {
        None => Ok(Outcome::NotHandled.into()),
        Some(Topic::Subscription) => Ok(sync(db, context, id, None).await?.into()),
        Some(Topic::Checkout) => checkout(db, context, id).await,
        Some(Topic::Draft | Topic::Payment) => invoice(db, context, id).await,
    }
}

/// Links the account that a checkout was made for with what came of it.
async fn checkout(db: &mut PgConnection, context: &Context, id: &str) -> Result<Applied, Failure> {
    context.pace.wait().await;
    let Some(session) = context.subscriptions.checkout_session(id).await? else {
        return Ok(Outcome::Gone.into());
    };
    match session.subscription.filter(|_| session.state == CheckoutState::Complete) {
        Some(subscription) => Ok(sync(db, context, &subscription, session.eco_id.as_deref()).await?.into()),
        None => Ok(Outcome::NotOurs.into()),
    }
}

/// That an invoice was paid or not shows in its subscription's state. A draft of a cycle of
/// the subscription in force gets what its period owes, unless nobody finalises it: then the next invoice gets that.
async fn invoice(db: &mut PgConnection, context: &Context, id: &str) -> Result<Applied, Failure> {
    context.pace.wait().await;
    let Some(invoice) = context.subscriptions.invoice(id).await? else { return Ok(Outcome::Gone.into()) };
    let Some(subscription) = invoice.subscription else { return Ok(Outcome::NotOurs.into()) };
    match sync(db, context, &subscription, None).await? {
        Synced::Applied { eco_id, in_force: true }
            if invoice.is_draft && invoice.goes_on && invoice.is_of_cycle =>
        {
            let draft =
                Draft { eco_id: eco_id.to_string(), invoice_id: invoice.id, period_end: invoice.period_end };
            Ok(Applied { outcome: Outcome::Applied, draft: Some(draft) })
        }
        synced => Ok(synced.into()),
    }
}
