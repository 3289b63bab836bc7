//! Applies Stripe's events, in the background.
//!
//! An event says what happened, and not how things stand: events come twice, out of order and days late. So what it is
//! about is read at Stripe, and our tables are brought to that. Whoever does that for a subscription has it alone, from
//! before the reading until the commit: nothing that was read earlier is ever written later.
//!
//! | module | what it does |
//! |---|---|
//! | [`worker`] | takes events that are due, one transaction each; what fails is due again later |
//! | [`apply`] | one event: which object it leads to |
//! | `sync` | a subscription: our tables as it stands at Stripe |
//! | [`look`] | the same without an event, where one may have been lost |
//! | `period` | leaves a period for another, and goes back |
//! | [`settle`] | what is charged after that, on the draft of a cycle |
//!
//! That a subscription has ended is written down with what else it changes, and cleared by [`super::clear_ended`].

pub mod apply;
pub mod look;
mod period;
pub mod settle;
mod sync;
pub mod worker;

use std::sync::Arc;

use nexus_kit::db;
use sqlx::{PgConnection, PgPool};
use tokio::sync::Semaphore;

use crate::{
    domain::stripe_event::MAX_ATTEMPTS,
    error::Error,
    payments::{Doubt, pace::Pace, subscriptions::Subscriptions},
    store::lease,
};

/// What applying events needs.
#[derive(Clone)]
pub struct Context {
    /// Where objects are read.
    pub subscriptions: Arc<dyn Subscriptions>,
    /// How fast.
    pub pace: Arc<Pace>,
    /// Turns of those who bring our tables up without an event: each has a connection for as long as Stripe takes to answer.
    turns: Arc<Semaphore>,
}

impl Context {
    /// `at_once`: how many may bring our tables up at once, without an event.
    pub fn new(subscriptions: Arc<dyn Subscriptions>, pace: Arc<Pace>, at_once: usize) -> Self {
        Self { subscriptions, pace, turns: Arc::new(Semaphore::new(at_once)) }
    }
}

/// Brings our tables to how a subscription stands at Stripe, without an event; `named`: the account that it is for.
///
/// Stripe is asked within the transaction that has the subscription alone: what is read is written before anybody else reads
/// it. Nobody counts calls behind that, for the account is seized after the reading. But it takes a connection, for
/// `WITHIN` of the worker at most: only so many do it at once, and the others wait for their turn without one.
pub async fn bring_up(
    pool: &PgPool,
    context: &Context,
    id: &str,
    named: Option<&str>,
) -> Result<(), Failure> {
    alone(pool, context, id, async |db| sync::sync_alone(db, context, id, named).await.map(drop)).await
}

/// Does something in a transaction that has the subscription alone, and commits.
async fn alone<T>(
    pool: &PgPool,
    context: &Context,
    id: &str,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let closed = |_| Failure::Broken("nobody may bring our tables up any more");
    let _turn = context.turns.acquire().await.map_err(closed)?;
    let mut transaction = db::begin(pool).await?;
    lease::stripe_object(&mut transaction, id, worker::IDLE).await?;
    let working = work(&mut transaction);
    let done = tokio::time::timeout(worker::WITHIN, working).await;
    let done = done.map_err(|_elapsed| Failure::Broken("bringing our tables up took too long"))??;
    transaction.commit().await?;
    Ok(done)
}

/// Why an event could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Another is at work on the same subscription.
    #[error("the subscription is being worked on")]
    Busy,
    /// Stripe could not be asked.
    #[error("{}", .0.message)]
    Stripe(Doubt),
    /// What is to be charged with it is not known to be, or was not sent.
    #[error("{0}")]
    Unsettled(String),
    /// Something is to be mended first, here or at Stripe.
    #[error("{0}")]
    Refused(String),
    /// It took too long, or panicked.
    #[error("{0}")]
    Broken(&'static str),
    /// Our own side.
    #[error(transparent)]
    Own(#[from] Error),
}

impl From<Doubt> for Failure {
    fn from(doubt: Doubt) -> Self {
        Self::Stripe(doubt)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Own(error.into())
    }
}

impl Failure {
    /// Whether an event is given up, until Stripe sends it again, when it has failed so often. What passes by itself is
    /// waited for without end.
    fn is_given_up(&self, attempts: i32) -> bool {
        match self {
            Self::Busy | Self::Stripe(_) | Self::Unsettled(_) => false,
            Self::Own(Error::ReconcileRequired) => false,
            Self::Own(Error::Database(error)) if nexus_kit::db::is_unavailable(error) => false,
            Self::Refused(_) | Self::Broken(_) | Self::Own(_) => attempts >= MAX_ATTEMPTS,
        }
    }
}
