//! A checkout that leads to a subscription. At most one of an account is open, and none while it has a subscription: so
//! nobody comes to have two.
//!
//! It is written down before it is sent; whoever comes after a crash gets the session that its key made. None is given up, or
//! replaced, before it was looked at: somebody may have paid, whose event was not heard. One whose answer is lost for good
//! cannot be used, for nobody knows its address; it is looked for all the same, among those that the account has at Stripe.
//! What nobody asks for again a worker looks at once its time is over.

use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{db, validate::Violations};
use uuid::Uuid;

use super::{
    Sales, customer,
    requests::{self, Before},
};
use crate::{
    domain::{
        of_a_day::MAX_CHECKOUTS,
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
    let mut transaction = db::begin(&sales.pool).await?;
    requests::keep(&mut transaction, &request, None).await?;
    transaction.commit().await?;
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
            Some(checkout) => {
                if let Some(open) = look(sales, eco_id, plan, &checkout).await? {
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
    if checkouts::insert(&mut transaction, eco_id, plan, &checkout).await? {
        let of_a_day = checkouts::of_a_day(&mut transaction, eco_id).await?;
        if let Some(retry) = of_a_day.beyond(MAX_CHECKOUTS) {
            return Err(Error::TooManyCheckouts { eco_id: eco_id.clone(), retry });
        }
    }
    Ok(transaction.commit().await?)
}

/// Looks at a checkout that is written down, and returns it if it can be used; one of another plan is ended. `None`: it is over,
/// or to be looked at again.
async fn look(
    sales: &Sales,
    eco_id: &EcoId,
    plan: Plan,
    written: &WrittenCheckout,
) -> Result<Option<OpenCheckout>, Error> {
    let Some(session) = session(sales, eco_id, written).await? else {
        if unheard(sales, eco_id, written).await? {
            return Err(Error::AlreadySubscribed(eco_id.clone()));
        }
        close(sales, eco_id, written.number).await?;
        return Ok(None);
    };
    match (session.state, session.url.clone()) {
        (CheckoutState::Open, Some(url)) if written.plan == plan => {
            return Ok(Some(OpenCheckout { session_id: session.id, url }));
        }
        (CheckoutState::Open, _) if !expire(sales, &session).await? => return Ok(None),
        (CheckoutState::Complete, _) if lives(sales, eco_id, &session).await? => {
            return Err(Error::AlreadySubscribed(eco_id.clone()));
        }
        (CheckoutState::Open | CheckoutState::Complete | CheckoutState::Expired, _) => {}
    }
    close(sales, eco_id, written.number).await?;
    Ok(None)
}

/// Ends the checkout of an account that is closed, and looks what came of one whose time is over. One that was not opened, as
/// far as is known, is opened by its key, for whoever was about to may have.
#[tracing::instrument(name = "sales.end_checkout", skip_all, fields(eco_id = %eco_id))]
pub async fn end(sales: &Sales, eco_id: &EcoId, written: &WrittenCheckout) -> Result<(), Error> {
    let goes_on = match session(sales, eco_id, written).await {
        Ok(Some(session)) => match session.state {
            // One that is not open any more is looked at again.
            CheckoutState::Open if !expire(sales, &session).await? => return Ok(()),
            CheckoutState::Open | CheckoutState::Expired => false,
            CheckoutState::Complete => lives(sales, eco_id, &session).await?,
        },
        Ok(None) => unheard(sales, eco_id, written).await?,
        // It never will be open, and is closed.
        Err(Error::StripeRefused(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    if goes_on {
        let mut connection = db::acquire(&sales.pool).await?;
        return Ok(checkouts::leave(&mut connection, eco_id, written.number).await?);
    }
    close(sales, eco_id, written.number).await
}

/// The session of a checkout as it stands; `None`: it is not at Stripe, or nobody can say which it is.
async fn session(
    sales: &Sales,
    eco_id: &EcoId,
    written: &WrittenCheckout,
) -> Result<Option<CheckoutSession>, Error> {
    let session_id = match &written.session_id {
        Some(session_id) => session_id.clone(),
        None if written.is_over => return Ok(None),
        None => match send(sales, eco_id, written).await? {
            Some(session_id) => session_id,
            None => return Ok(None),
        },
    };
    sales.events.pace.wait().await;
    Ok(sales.events.subscriptions.checkout_session(&session_id).await?)
}

/// Looks for what came of a checkout whose session nobody can name: what the account has open is ended, and what was paid for
/// is taken over; whether there is any of that.
async fn unheard(sales: &Sales, eco_id: &EcoId, written: &WrittenCheckout) -> Result<bool, Error> {
    let (customer, opened) = (written.checkout.customer.as_deref(), written.opened());
    let pace = &sales.events.pace;
    pace.wait().await;
    let found = sales.events.subscriptions.checkout_sessions(customer, opened, pace).await?;
    let mut goes_on = false;
    for session in found.iter().filter(|session| session.eco_id.as_deref() == Some(eco_id.as_str())) {
        match session.state {
            CheckoutState::Open if !expire(sales, session).await? => {
                return Err(Error::StripeUnavailable("a checkout is being gone through".to_owned()));
            }
            CheckoutState::Open | CheckoutState::Expired => {}
            CheckoutState::Complete => goes_on |= lives(sales, eco_id, session).await?,
        }
    }
    Ok(goes_on)
}

/// Ends a session that is open; false: it was not any more.
async fn expire(sales: &Sales, session: &CheckoutSession) -> Result<bool, Error> {
    sales.events.pace.wait().await;
    let key = format!("nexus-checkout-end-{}", session.id);
    match sales.port.end_checkout(&session.id, &key).await {
        Outcome::Succeeded { .. } => Ok(true),
        Outcome::FailedForGood(refusal) => {
            tracing::info!(reason = refusal.reason, "a checkout is not open any more");
            Ok(false)
        }
        Outcome::Unknown(doubt) => Err(doubt.into()),
    }
}

/// The customer has been through it: our tables are brought to what came of it, as by its event. Whether that goes on: then
/// the account gets no other, and a closed account's is ended.
async fn lives(sales: &Sales, eco_id: &EcoId, session: &CheckoutSession) -> Result<bool, Error> {
    let Some(id) = &session.subscription else { return Ok(false) };
    sales.events.pace.wait().await;
    let found = sales.events.subscriptions.subscription(id).await?;
    if found.is_none_or(|found| is_over(&found)) {
        return Ok(false);
    }
    sales.bring_up(id, Some(eco_id.as_str())).await?;
    Ok(true)
}

/// Opens it at Stripe; `None`: nobody will hear what became of that.
async fn send(sales: &Sales, eco_id: &EcoId, written: &WrittenCheckout) -> Result<Option<String>, Error> {
    sales.events.pace.wait().await;
    let key = checkout_key(eco_id, written.number);
    match sales.port.open_checkout(&written.checkout, &key).await {
        Outcome::Succeeded { id, .. } => {
            let mut connection = db::acquire(&sales.pool).await?;
            checkouts::set_session(&mut connection, eco_id, written.number, &id).await?;
            Ok(Some(id))
        }
        Outcome::FailedForGood(refusal) => {
            close(sales, eco_id, written.number).await?;
            Err(Error::StripeRefused(refusal.message))
        }
        Outcome::Unknown(doubt) if doubt.advice == Advice::Look => Ok(None),
        Outcome::Unknown(doubt) => Err(doubt.into()),
    }
}

async fn close(sales: &Sales, eco_id: &EcoId, number: i32) -> Result<(), Error> {
    let mut connection = db::acquire(&sales.pool).await?;
    Ok(checkouts::close(&mut connection, eco_id, number).await?)
}
