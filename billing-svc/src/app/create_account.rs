//! Creates an account with a subscription to the newest version of its plan.

use nexus_kit::{db, validate::Violations};
use sqlx::{Connection, PgConnection, PgPool};

use crate::{
    domain::account::{Account, NewAccount},
    error::Error,
    store::{accounts, plans},
};

/// A repeat of a request returns the account it created.
pub async fn run(pool: &PgPool, new: &NewAccount, actor: &str) -> Result<Account, Error> {
    let mut connection = db::acquire(pool).await?;
    if let Some(account) = created_before(&mut connection, new).await? {
        return Ok(account);
    }
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
