//! Demo data: 100 free, 45 pro and 5 enterprise accounts with 90 days of usage.
//!
//! | module | what it decides |
//! |---|---|
//! | [`accounts`] | who they are, when their periods begin, how much they use |
//! | [`names`] | names of people and companies |
//! | [`endpoints`] | what they call: routes, latencies, outcomes |
//! | [`traffic`] | when they call: hours, weekdays, growth; events that sum to the very totals decided |
//! | [`customers`] | customers and subscriptions at the stand-in Stripe |
//! | [`load`] | puts all of it into the database, in one transaction |
//!
//! The same seed gives the same accounts and totals; times are relative to today. The current period of an
//! account has raw events, from which counters and rollups are made by the same database functions that
//! serve recording; what lies before it exists as rollups only, as it would after retention.

mod accounts;
mod customers;
mod endpoints;
mod load;
mod names;
mod traffic;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use nexus_core::{
    id::{ApiKeyText, EcoId},
    plan::Plan,
};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    DevArgs,
    database::{self, Database, DemoState},
    folder::Secrets,
    ready_file::{ApiKey, ApiKeys},
    stripe::Stripe,
};

/// The free account near its limit.
pub(crate) const FREE: &str = "eco_demo_free";
/// A pro account below its limit.
pub(crate) const PRO: &str = "eco_demo_pro";
/// An enterprise account.
pub(crate) const ENTERPRISE: &str = "eco_demo_enterprise";

/// The email of the account above that is on this plan.
pub(crate) fn email(plan: Plan) -> String {
    accounts::email_of_first(plan)
}

/// The demo accounts' credentials.
pub(crate) struct Demo {
    pub(crate) api_keys: ApiKeys,
}

/// Puts the demo data in, if this database is to have it and does not yet.
pub(crate) async fn ensure(
    args: &DevArgs,
    database: &Database,
    stripe: &Stripe,
    secrets: &Secrets,
) -> Result<Demo> {
    let mut connection = database.connect().await?;
    let state = match database.cluster() {
        Some(_) => database::demo_state(&mut connection).await?,
        None => DemoState::Foreign,
    };
    ensure!(
        state != DemoState::Loaded || stripe.embedded(),
        "this data folder has demo data, whose customers the Stripe of STRIPE_SECRET_KEY does not know: give another --data-dir"
    );
    let loaded = match state {
        DemoState::Loaded => true,
        DemoState::Wanted if args.wants_demo() && stripe.embedded() => {
            seed(&mut connection, stripe, secrets).await.context("making the demo data")?
        }
        DemoState::Wanted | DemoState::Declined | DemoState::Foreign => false,
    };
    connection.close().await?;
    let key = |eco_id: &str| -> Result<Option<ApiKey>> {
        let key = api_key(secrets, eco_id)?;
        Ok(loaded.then(|| ApiKey { eco_id: eco_id.to_owned(), key: key.expose() }))
    };
    Ok(Demo { api_keys: ApiKeys { free: key(FREE)?, pro: key(PRO)?, enterprise: key(ENTERPRISE)? } })
}

/// Whether the data is in. An interrupted earlier attempt left nothing in the database; but accounts that
/// somebody made meanwhile are not mixed with made-up ones.
async fn seed(connection: &mut PgConnection, stripe: &Stripe, secrets: &Secrets) -> Result<bool> {
    let (now, used): (DateTime<Utc>, bool) =
        sqlx::query_as("select date_trunc('second', now()), exists (select from eco_identities)")
            .fetch_one(&mut *connection)
            .await?;
    if used {
        eprintln!(
            "nexus: no demo data: the database already has accounts of yours (a new --data-dir gives some)"
        );
        return Ok(false);
    }
    let accounts = accounts::all(now);
    let at_stripe = customers::create(stripe, &accounts).await?;
    tracing::debug!("customers are at the stand-in Stripe");
    let keys = accounts.iter().map(|a| api_key(secrets, &a.eco_id)).collect::<Result<Vec<_>>>()?;
    let traffic = accounts
        .iter()
        .zip(&keys)
        .map(|(account, key)| traffic::of(account, key.key_id(), now))
        .collect::<Vec<_>>();
    tracing::debug!("traffic is made up");
    load::all(connection, &accounts, &at_stripe, &keys, traffic).await?;
    Ok(true)
}

/// An account's API key: the same as long as the secrets of the data folder are.
fn api_key(secrets: &Secrets, eco_id: &str) -> Result<ApiKeyText> {
    let secret = secrets.demo_api_keys.expose_secret().as_bytes();
    Ok(ApiKeyText::derive(secret, &EcoId::parse(eco_id)?, Uuid::nil()))
}
