//! A checkout that leads to a subscription. At most one of an account is open, and none while it has a subscription: so
//! nobody comes to have two.
//!
//! It is written down before it is sent; whoever comes after a crash gets the session that its key made. One whose answer
//! is lost for good cannot be used, for nobody knows its address; it is open for no longer than its key lives.

use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{db, validate::Violations};

use super::Sales;
use crate::{
    domain::{
        stripe_change::{CHECKOUT_LIFE, NewCheckout, WrittenCheckout, checkout_key},
        stripe_objects::{CheckoutSession, CheckoutState},
        stripe_subscription::is_over,
    },
    error::Error,
    payments::{Advice, Outcome},
    store::{accounts, checkouts},
};

/// Checkouts that are looked at for one answer, at most: one that is over, one of another plan, a new one.
const MAX_LOOKS: usize = 6;

/// A checkout that a customer can go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenCheckout {
    /// Session at Stripe.
    pub session_id: String,
    /// Where the customer goes through it.
    pub url: String,
}

/// What became of a look.
enum Look {
    /// It is open.
    Is(OpenCheckout),
    /// It is over: look again.
    Over,
}

/// Opens a checkout of a plan, or returns the one that is open.
#[tracing::instrument(name = "sales.checkout", skip_all, fields(eco_id = %eco_id))]
pub async fn run(sales: &Sales, eco_id: &EcoId, plan: Plan, actor: &str) -> Result<OpenCheckout, Error> {
    if plan == Plan::Free {
        return Err(Violations::one("plan", "must be a plan that is paid for").into());
    }
    for _ in 0..MAX_LOOKS {
        if sales.subscription(eco_id).await?.stripe_subscription_id.is_some() {
            return Err(Error::AlreadySubscribed(eco_id.clone()));
        }
        let known = {
            let mut connection = db::acquire(&sales.pool).await?;
            checkouts::open(&mut connection, eco_id).await?
        };
        match known {
            None => write_down(sales, eco_id, plan, actor).await?,
            Some(checkout) if checkout.is_over => close(sales, eco_id, checkout.number).await?,
            Some(checkout) => {
                if let Look::Is(open) = look(sales, eco_id, plan, checkout).await? {
                    return Ok(open);
                }
            }
        }
    }
    Err(Error::StripeUnavailable("no checkout stays open".to_owned()))
}

async fn write_down(sales: &Sales, eco_id: &EcoId, plan: Plan, actor: &str) -> Result<(), Error> {
    let subscription = sales.subscription(eco_id).await?;
    let price_id = sales.price(plan, subscription.currency).await?;
    let mut transaction = db::begin(&sales.pool).await?;
    db::set_actor(&mut transaction, actor).await?;
    let account = accounts::get(&mut transaction, eco_id.as_str()).await?;
    let account = account.ok_or_else(|| Error::AccountNotFound(eco_id.clone()))?;
    let checkout = NewCheckout {
        eco_id: eco_id.to_string(),
        customer: account.stripe_customer_id,
        email: account.email,
        price_id,
        success_url: sales.pages.success.clone(),
        cancel_url: sales.pages.cancel.clone(),
        expires: subscription.now + CHECKOUT_LIFE,
    };
    checkouts::insert(&mut transaction, eco_id, plan, &checkout).await?;
    Ok(transaction.commit().await?)
}

/// Looks at a checkout that is written down; one of another plan is ended.
async fn look(sales: &Sales, eco_id: &EcoId, plan: Plan, written: WrittenCheckout) -> Result<Look, Error> {
    let number = written.number;
    let session_id = match &written.session_id {
        Some(session_id) => session_id.clone(),
        None => match send(sales, eco_id, &written).await? {
            Some(session_id) => session_id,
            None => return Ok(Look::Over),
        },
    };
    sales.events.pace.wait().await;
    let session = sales.events.subscriptions.checkout_session(&session_id).await?;
    let Some(session) = session else {
        close(sales, eco_id, number).await?;
        return Ok(Look::Over);
    };
    match (session.state, session.url.clone()) {
        (CheckoutState::Open, Some(url)) if written.plan == plan => {
            Ok(Look::Is(OpenCheckout { session_id, url }))
        }
        (CheckoutState::Open, _) => {
            sales.events.pace.wait().await;
            let key = format!("{}-end", checkout_key(eco_id, number));
            match sales.port.end_checkout(&session_id, &key).await {
                Outcome::Succeeded { .. } => close(sales, eco_id, number).await?,
                // The customer was through it, or its time was over: it is looked at once more.
                Outcome::FailedForGood(refusal) => {
                    tracing::info!(reason = refusal.reason, "a checkout is not open any more");
                }
                Outcome::Unknown(doubt) => return Err(doubt.into()),
            }
            Ok(Look::Over)
        }
        (CheckoutState::Complete, _) => {
            complete(sales, eco_id, &session).await?;
            close(sales, eco_id, number).await?;
            Ok(Look::Over)
        }
        (CheckoutState::Expired, _) => {
            close(sales, eco_id, number).await?;
            Ok(Look::Over)
        }
    }
}

/// The customer has been through it: while what came of it goes on, the account gets no other.
async fn complete(sales: &Sales, eco_id: &EcoId, session: &CheckoutSession) -> Result<(), Error> {
    let Some(id) = &session.subscription else { return Ok(()) };
    sales.events.pace.wait().await;
    let found = sales.events.subscriptions.subscription(id).await?;
    if found.is_none_or(|found| is_over(&found)) {
        return Ok(());
    }
    sales.bring_up(id, Some(eco_id.as_str())).await?;
    Err(Error::AlreadySubscribed(eco_id.clone()))
}

/// Opens it at Stripe; `None`: it never will be.
async fn send(sales: &Sales, eco_id: &EcoId, written: &WrittenCheckout) -> Result<Option<String>, Error> {
    sales.events.pace.wait().await;
    let key = checkout_key(eco_id, written.number);
    match sales.port.open_checkout(&written.checkout, &key).await {
        Outcome::Succeeded { id } => {
            let mut connection = db::acquire(&sales.pool).await?;
            checkouts::set_session(&mut connection, eco_id, written.number, &id).await?;
            Ok(Some(id))
        }
        Outcome::FailedForGood(refusal) => {
            close(sales, eco_id, written.number).await?;
            Err(Error::StripeRefused(refusal.message))
        }
        Outcome::Unknown(doubt) if doubt.advice == Advice::Look => {
            close(sales, eco_id, written.number).await?;
            Ok(None)
        }
        Outcome::Unknown(doubt) => Err(doubt.into()),
    }
}

async fn close(sales: &Sales, eco_id: &EcoId, number: i32) -> Result<(), Error> {
    let mut connection = db::acquire(&sales.pool).await?;
    Ok(checkouts::close(&mut connection, eco_id, number).await?)
}
