//! Creates an account with a subscription to the newest version of its plan. A customer and a subscription at Stripe that it is
//! to have are read there: plan, customer, currency, state and periods are those. One that may have to pay and comes without
//! a customer gets one, in the background ([`super::sales::customer`]).

use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;
use nexus_kit::{db, validate::Violations};
use sqlx::{Connection, PgConnection};

use super::sales::Sales;
use crate::{
    domain::{
        account::{Account, NewAccount},
        stripe_objects::{Customer, Subscription},
        stripe_subscription::{anchor_by, is_over},
    },
    error::Error,
    store::{accounts, plans, stripe_customers, stripe_events, stripe_prices},
};

/// A repeat of a request returns the account it created.
pub async fn run(sales: &Sales, new: &NewAccount, actor: &str) -> Result<Account, Error> {
    {
        let mut connection = db::acquire(&sales.pool).await?;
        if let Some(account) = created_before(&mut connection, new).await? {
            return Ok(account);
        }
    }
    let anchor_time = check_at_stripe(sales, new).await?.or(new.anchor_time);
    let account = create_or_find(sales, &NewAccount { anchor_time, ..new.clone() }, actor).await?;
    if let Some(id) = &new.stripe_subscription_id {
        // The rest of it: state, periods, when it ends. Where this is cut off, its next event does it.
        if let Err(error) = sales.bring_up(id, None).await {
            tracing::warn!(%error, eco_id = %new.eco_id, "a new account is brought up by its subscription's next event");
        }
        let mut connection = db::acquire(&sales.pool).await?;
        return Ok(accounts::get(&mut connection, new.eco_id.as_str()).await?.unwrap_or(account));
    }
    Ok(account)
}

/// What is named at Stripe is there, and is what is asked for; the periods of its subscription are the account's, by the
/// anchor that is returned.
async fn check_at_stripe(sales: &Sales, new: &NewAccount) -> Result<Option<DateTime<Utc>>, Error> {
    let (mut violations, mut anchor) = (Violations::new(), None);
    if let Some(id) = &new.stripe_customer_id {
        sales.events.pace.wait().await;
        check_customer(&mut violations, new, sales.events.subscriptions.customer(id).await?);
    }
    if let Some(id) = &new.stripe_subscription_id {
        sales.events.pace.wait().await;
        let found = sales.events.subscriptions.subscription(id).await?;
        anchor = check_subscription(sales, &mut violations, new, found).await?;
    }
    violations.finish()?;
    Ok(anchor)
}

fn check_customer(violations: &mut Violations, new: &NewAccount, found: Option<Customer>) {
    let Some(found) = found else {
        violations.add("stripe_customer_id", "must be a customer at Stripe");
        return;
    };
    violations.require(
        found.eco_id.is_none_or(|named| named == new.eco_id.as_str()),
        "stripe_customer_id",
        "must not be a customer whose metadata at Stripe names another account",
    );
    violations.require(
        found.currency.is_none_or(|currency| currency.eq_ignore_ascii_case(new.currency.as_str())),
        "currency_code",
        "must be that of the customer at Stripe",
    );
}

async fn check_subscription(
    sales: &Sales,
    violations: &mut Violations,
    new: &NewAccount,
    found: Option<Subscription>,
) -> Result<Option<DateTime<Utc>>, Error> {
    let Some(found) = found.filter(|found| !is_over(found)) else {
        violations.add("stripe_subscription_id", "must be a subscription at Stripe that has not ended");
        return Ok(None);
    };
    violations.require(
        new.stripe_customer_id.as_ref() == Some(&found.customer),
        "stripe_customer_id",
        "must be the customer of the subscription at Stripe",
    );
    let mut connection = db::acquire(&sales.pool).await?;
    let priced = stripe_prices::find(&mut connection, &found.prices).await?;
    violations.require(
        priced.is_some_and(|priced| priced.plan == new.plan),
        "plan",
        "must be that of the subscription's price at Stripe",
    );
    Ok(Some(anchor_by(found.anchor, stripe_events::now(&mut connection).await?)))
}

async fn create_or_find(sales: &Sales, new: &NewAccount, actor: &str) -> Result<Account, Error> {
    let mut connection = db::acquire(&sales.pool).await?;
    match create(&mut connection, new, actor).await {
        // The same request at the same moment was quicker.
        Err(Error::Database(e)) if db::violates(&e, "eco_identities_create_request_id_key") => {
            created_before(&mut connection, new).await?.ok_or(Error::Database(e))
        }
        Err(Error::Database(e)) => match (taken(&e), created_before(&mut connection, new).await?) {
            (Some(_), Some(account)) => Ok(account),
            (Some(taken), None) => Err(taken),
            (None, _) => Err(Error::Database(e)),
        },
        result => result,
    }
}

async fn created_before(db: &mut PgConnection, new: &NewAccount) -> Result<Option<Account>, Error> {
    match new.request_id {
        Some(request_id) => Ok(accounts::find_by_request(db, request_id).await?),
        None => Ok(None),
    }
}

async fn create(connection: &mut PgConnection, new: &NewAccount, actor: &str) -> Result<Account, Error> {
    let mut transaction = connection.begin().await?;
    db::set_actor(&mut transaction, actor).await?;
    let plan = plans::newest(&mut transaction, new.plan, new.currency).await?;
    let mut violations = Violations::new();
    violations.require(
        plan.has_currency,
        "currency_code",
        format!("must be a currency that the plan {} has a price in", new.plan),
    );
    violations.require(
        new.anchor_time.is_none_or(|anchor| anchor <= plan.now),
        "billing_anchor_time",
        "must not be in the future",
    );
    violations.finish()?;
    accounts::insert(&mut transaction, new, plan.version).await?;
    if new.plan != Plan::Free {
        stripe_customers::want(&mut transaction, &new.eco_id).await?;
    }
    let account = accounts::get(&mut transaction, new.eco_id.as_str()).await?;
    transaction.commit().await?;
    account.ok_or_else(|| Error::AccountNotFound(new.eco_id.clone()))
}

/// What another account has already.
fn taken(error: &sqlx::Error) -> Option<Error> {
    [
        ("eco_identities_pkey", Error::AccountExists),
        ("eco_identities_stripe_customer_id_key", Error::StripeCustomerTaken),
        ("eco_subscriptions_stripe_subscription_id_key", Error::StripeSubscriptionTaken),
    ]
    .into_iter()
    .find_map(|(constraint, taken)| db::violates(error, constraint).then_some(taken))
}
