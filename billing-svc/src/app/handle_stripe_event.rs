//! Takes a webhook of Stripe's: verified, stored and committed, then answered. Applying it is another's work
//! ([`super::stripe_events`]).

use nexus_kit::{db, validate::Violations};
use sqlx::PgPool;

use crate::{
    domain::{
        stripe_event::{NewEvent, Topic},
        stripe_signature::{Secrets, check_time},
    },
    error::Error,
    store::stripe_events,
};

/// An event that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Stripe's id of it.
    pub event_id: String,
    /// It was stored before.
    pub duplicate: bool,
}

/// Stores an event once. One that is stored and not yet applied is applied at once, however often that failed.
pub async fn run(pool: &PgPool, secrets: &Secrets, signature: &str, body: &[u8]) -> Result<Stored, Error> {
    if secrets.is_empty() {
        return Err(Error::NoWebhookSecret);
    }
    let signed = secrets.verify(signature, body)?;
    let event = NewEvent::read(body).map_err(|message| Violations::one("payload", message))?;
    let mut transaction = db::begin(pool).await?;
    check_time(signed, stripe_events::now(&mut transaction).await?)?;
    let is_handled = Topic::of(&event.kind).is_some();
    let duplicate = !stripe_events::insert(&mut transaction, &event, is_handled).await?;
    if duplicate {
        stripe_events::hasten(&mut transaction, &event.event_id).await?;
    }
    transaction.commit().await?;
    Ok(Stored { event_id: event.event_id, duplicate })
}
