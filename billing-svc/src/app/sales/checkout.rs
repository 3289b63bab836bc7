//! A checkout that leads to a subscription. At most one of an account is open, and none while it has a subscription: so
//! nobody comes to have two.
//!
//! It is written down before it is sent; whoever comes after a crash gets the session that its key made. One whose answer
//! is lost for good cannot be used, for nobody knows its address; it is open for no longer than its key lives.

use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{db, validate::Violations};
use uuid::Uuid;

use super::{
    Sales, customer,
    requests::{self, Before},
};
use crate::{
    domain::{
        sale::{Asked, OpenCheckout, SaleRequest},
        stripe_change::{CHECKOUT_LIFE, NewCheckout, WrittenCheckout, checkout_key},
        stripe_objects::{CheckoutSession, CheckoutState},
        stripe_subscription::is_over,
    },
    error::Error,
    payments::{Advice, Outcome},
    store::{accounts, checkouts, subscriptions},
};

/// Checkouts that are looked at for one answer, at most: one that is over, one of another plan, a new one.
const MAX_LOOKS: usize = 6;

/// What became of a look.
enum Look {
    /// It is open.
    Is(OpenCheckout),
    /// It is over: look again.
    Over,
}

/// Opens a checkout of a plan, or returns the one that is open. A repeat of a request returns the first answer.
#[tracing::instrument(name = "sales.checkout", skip_all, fields(eco_id = %eco_id))]
pub async fn run(
    sales: &Sales,
    eco_id: &EcoId,
    plan: Plan,
    request_id: Option<Uuid>,
    actor: &str,
) -> Result<OpenCheckout, Error> {
    if plan == Plan::Free {
        return Err(Violations::one("plan", "must be a plan that is paid for").into());
    }
    let request = SaleRequest { eco_id: eco_id.clone(), asked: Asked::Checkout { plan }, request_id };
    if let Some(Before::Answered(answer)) = requests::before(sales, &request).await? {
        return Ok(answer);
    }
    let opened = open(sales, eco_id, plan, actor).await?;
    // Whoever is cut off before this finds the same one open.
    let mut connection = db::acquire(&sales.pool).await?;
    requests::keep(&mut connection, &request, None).await?;
    drop(connection);
    requests::answer(sales, &request, opened).await
}

async fn open(sales: &Sales, eco_id: &EcoId, plan: Plan, actor: &str) -> Result<OpenCheckout, Error> {
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

/// Writes a checkout down, unless the account is closed meanwhile, or has a subscription.
async fn write_down(sales: &Sales, eco_id: &EcoId, plan: Plan, actor: &str) -> Result<(), Error> {
    let price_id = sales.price(plan, sales.subscription(eco_id).await?.currency).await?;
    // One that is to be made for the account is the one that it pays by.
    customer::make_due(sales, Some(eco_id)).await?;
    let mut transaction = db::begin(&sales.pool).await?;
    // Whoever closes the account sees it, or has closed it before.
    subscriptions::seize(&mut transaction, eco_id).await?;
    db::set_actor(&mut transaction, actor).await?;
    let unknown = || Error::AccountNotFound(eco_id.clone());
    let account = accounts::get(&mut transaction, eco_id.as_str()).await?.ok_or_else(unknown)?;
    let subscription = subscriptions::get(&mut transaction, eco_id).await?.ok_or_else(unknown)?;
    if account.closed_time.is_some() {
        return Err(Error::AccountClosed(eco_id.clone()));
    }
    if subscription.stripe_subscription_id.is_some() {
        return Err(Error::AlreadySubscribed(eco_id.clone()));
    }
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
            expire(sales, eco_id, number, &session_id).await?;
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

/// Ends a session that is open. One that is not any more is to be looked at again.
async fn expire(sales: &Sales, eco_id: &EcoId, number: i32, session_id: &str) -> Result<(), Error> {
    sales.events.pace.wait().await;
    let key = format!("{}-end", checkout_key(eco_id, number));
    match sales.port.end_checkout(session_id, &key).await {
        Outcome::Succeeded { .. } => close(sales, eco_id, number).await,
        Outcome::FailedForGood(refusal) => {
            tracing::info!(reason = refusal.reason, "a checkout is not open any more");
            Ok(())
        }
        Outcome::Unknown(doubt) => Err(doubt.into()),
    }
}

/// Ends the checkout of an account that is closed. One that was not opened, as far as is known, is opened by its key, for
/// whoever was about to may have.
#[tracing::instrument(name = "sales.end_checkout", skip_all, fields(eco_id = %eco_id))]
pub async fn end(sales: &Sales, eco_id: &EcoId, written: &WrittenCheckout) -> Result<(), Error> {
    if written.is_over {
        return close(sales, eco_id, written.number).await;
    }
    let session_id = match &written.session_id {
        Some(session_id) => session_id.clone(),
        None => match send(sales, eco_id, written).await {
            Ok(Some(session_id)) => session_id,
            // It never will be open, and is closed.
            Ok(None) | Err(Error::StripeRefused(_)) => return Ok(()),
            Err(error) => return Err(error),
        },
    };
    sales.events.pace.wait().await;
    let session = sales.events.subscriptions.checkout_session(&session_id).await?;
    match session.map(|session| session.state) {
        Some(CheckoutState::Open) => expire(sales, eco_id, written.number, &session_id).await,
        // What came of it is ended by its event, as everything of a closed account.
        Some(CheckoutState::Complete | CheckoutState::Expired) | None => {
            close(sales, eco_id, written.number).await
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
