//! `/api/admin/accounts/*`: one account in depth, for admins.

use axum::{Json, extract::State};
use nexus_proto::{billing::v1 as billing, usage::v1 as usage};
use serde::Serialize;
use tokio::try_join;
use utoipa::ToSchema;

use super::{
    charges::Charge,
    keys::Key,
    spend_cap::SpendCap,
    subscriptions::Subscription,
    usage::{Current, Overage},
};
use crate::{App, auth::Admin, convert, error::Error, format, query::Named};

const KEYS: i32 = 100;
const CHARGES: i32 = 10;

/// An account, and all that belongs to it.
#[derive(Serialize, ToSchema)]
pub(super) struct Account {
    eco_id: String,
    email: Option<String>,
    /// `active` or `closed`.
    account_status: &'static str,
    plan: &'static str,
    /// Of its subscription.
    status: &'static str,
    /// ISO 4217.
    currency: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    closed_at: Option<String>,
    stripe_customer_id: Option<String>,
    stripe_subscription_id: Option<String>,
    subscription: Subscription,
    usage: Current,
    overage: Overage,
    spend_cap: SpendCap,
    /// The 100 newest, without their secrets.
    keys: Vec<Key>,
    /// Whether it has more.
    more_keys: bool,
    /// The ten newest.
    charges: Vec<Charge>,
    /// Whether it has more.
    more_charges: bool,
}

/// One account in depth
///
/// Plan, period, usage, overage, spend cap, keys and recent charges.
#[utoipa::path(get, path = "/api/admin/accounts/{id}", tag = "admin",
    params(("id" = String, Path, description = "The account", pattern = "^eco_[A-Za-z0-9_.:-]{1,60}$")), responses(
    (status = 200, body = Account, description = "The account"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn show(
    State(app): State<App>,
    Admin(admin): Admin,
    Named(id): Named,
) -> Result<Json<Account>, Error> {
    let (keys, charges) = (
        usage::ListApiKeysRequest { eco_id: id.clone(), page_size: KEYS, page_token: String::new() },
        billing::ListChargesRequest { eco_id: id.clone(), page_size: CHARGES, page_token: String::new() },
    );
    let (account, subscription, usage, overage, keys, charges) = try_join!(
        app.backend.account(&admin, &id),
        app.backend.subscription(&admin, &id),
        app.backend.current_usage(&admin, &id),
        app.backend.overage(&admin, &id),
        app.backend.api_keys(&admin, keys),
        app.backend.charges(&admin, charges),
    )?;
    Ok(Json(Account {
        account_status: convert::account_status_word(account.status())?,
        plan: convert::plan_word(account.plan)?,
        status: convert::status_word(account.subscription_status)?,
        created_at: format::time(convert::required_time("create_time", account.create_time.as_ref())?),
        closed_at: convert::optional_time("close_time", account.close_time.as_ref())?.map(format::time),
        eco_id: account.eco_id,
        email: convert::some_text(account.email),
        currency: account.currency_code,
        stripe_customer_id: convert::some_text(account.stripe_customer_id),
        stripe_subscription_id: convert::some_text(account.stripe_subscription_id),
        subscription: Subscription::of(subscription)?,
        usage: Current::of(&usage)?,
        overage: Overage::of(&overage)?,
        spend_cap: SpendCap::of(&overage)?,
        keys: keys.api_keys.into_iter().map(Key::try_from).collect::<Result<_, _>>()?,
        more_keys: !keys.next_page_token.is_empty(),
        charges: charges.charges.into_iter().map(Charge::try_from).collect::<Result<_, _>>()?,
        more_charges: !charges.next_page_token.is_empty(),
    }))
}
