//! Subscriptions at Stripe, changed from here: our tables and Stripe say the same in the end, whatever is cut off.
//!
//! A change is written down before it is sent, with its key; it asks for a state and not for a step, so that it may be
//! asked for again. Once Stripe has made it, the subscription is read there and our tables are brought to that, as an
//! event does, which comes as well. Who is cut off leaves it to [`worker`].
//!
//! | module | what it does |
//! |---|---|
//! | [`change`] | a change of plan, of a subscription at Stripe; its end, and that it goes on |
//! | [`checkout`] | a checkout that leads to a subscription: at most one of an account is open |
//! | [`carry_out`] | sends a change until it is known what became of it |
//! | [`customer`] | customers of accounts that came without one |
//! | `requests` | requests that may be repeated |
//! | [`worker`] | what was left, and checkouts that nobody asks for again |

pub mod carry_out;
pub mod change;
pub mod checkout;
pub mod customer;
mod requests;
pub mod worker;

use std::sync::Arc;

use nexus_core::{id::EcoId, money::Currency, plan::Plan};
use nexus_kit::db;
use sqlx::PgPool;
use tokio::sync::Semaphore;

use super::stripe_events::{self, Failure};
use crate::{
    domain::plan_change::Subscription,
    error::Error,
    payments::{Doubt, sales::Sales as Port},
    store::{stripe_prices, subscriptions},
};

/// What selling needs.
#[derive(Clone)]
pub struct Sales {
    /// Connections.
    pub pool: PgPool,
    /// Where it is asked for.
    pub port: Arc<dyn Port>,
    /// Where it is read, and how fast all of that.
    pub events: stripe_events::Context,
    /// Where customers come back to from a checkout.
    pub pages: Pages,
    /// Had by who brings our tables up: each has a connection for as long as Stripe takes to answer.
    places: Arc<Semaphore>,
}

/// Subscriptions that our tables are brought up to at once.
const PLACES: usize = 4;

/// Pages of the product's own.
#[derive(Debug, Clone)]
pub struct Pages {
    /// After a checkout.
    pub success: String,
    /// After one that was left.
    pub cancel: String,
}

impl Pages {
    /// Of the page where a user looks after the subscription; Stripe puts the session's id in.
    pub fn of(dashboard: &str) -> Self {
        let separator = if dashboard.contains('?') { '&' } else { '?' };
        Self {
            success: format!("{dashboard}{separator}checkout=success&session_id={{CHECKOUT_SESSION_ID}}"),
            cancel: format!("{dashboard}{separator}checkout=cancelled"),
        }
    }
}

impl From<Doubt> for Error {
    fn from(doubt: Doubt) -> Self {
        Self::StripeUnavailable(doubt.message)
    }
}

impl Sales {
    /// Sells over `port`, and reads by `events`.
    pub fn new(pool: PgPool, port: Arc<dyn Port>, events: stripe_events::Context, pages: Pages) -> Self {
        Self { pool, port, events, pages, places: Arc::new(Semaphore::new(PLACES)) }
    }

    /// The subscription of an open account, as our tables have it.
    async fn subscription(&self, eco_id: &EcoId) -> Result<Subscription, Error> {
        let mut connection = db::acquire(&self.pool).await?;
        let found = subscriptions::get(&mut connection, eco_id).await?;
        let subscription = found.ok_or_else(|| Error::AccountNotFound(eco_id.clone()))?;
        if subscription.closed_time.is_some() {
            return Err(Error::AccountClosed(eco_id.clone()));
        }
        Ok(subscription)
    }

    /// Brings our tables to how a subscription stands at Stripe.
    pub(super) async fn bring_up(&self, id: &str, named: Option<&str>) -> Result<(), Error> {
        let _place = self.places.acquire().await.map_err(|_| Error::Stopping)?;
        match stripe_events::bring_up(&self.pool, &self.events, id, named).await {
            Ok(()) => Ok(()),
            Err(Failure::Own(error)) => Err(error),
            Err(Failure::Stripe(doubt)) => Err(doubt.into()),
            // An event of it is parked with the reason, or will be.
            Err(failure) => Err(Error::StripeUnavailable(failure.to_string())),
        }
    }

    /// The price at Stripe that a plan is sold at.
    async fn price(&self, plan: Plan, currency: Currency) -> Result<String, Error> {
        let names = {
            let mut connection = db::acquire(&self.pool).await?;
            stripe_prices::names(&mut connection, plan).await?
        };
        self.events.pace.wait().await;
        let price = self.port.price(&names, currency.as_str()).await?;
        price.ok_or(Error::NoPriceAtStripe { plan, currency })
    }
}
