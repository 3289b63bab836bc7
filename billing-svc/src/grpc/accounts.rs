//! Requests and answers about accounts and plans.

use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    money::{Currency, Micros},
    plan::Plan,
};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::{datetime, plan_from_proto, plan_to_proto, status_to_proto, timestamp},
    page, status,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use rand::RngCore;
use tonic::Status;
use uuid::Uuid;

use crate::{
    app::list_accounts::Cursor,
    domain::{
        account::{Account, NewAccount, check_email, check_stripe_id},
        plan::{NewPlanVersion, PlanPrice, PlanVersion},
        plan_change::{PlanChange, PlanChanged},
        spend_cap::SpendCapChange,
    },
};

/// Reads a request to create an account; without an id it gets a random one.
pub(super) fn new_account(
    request: &pb::CreateAccountRequest,
    rng: &mut impl RngCore,
) -> Result<NewAccount, Violations> {
    let mut v = Violations::new();
    let eco_id = match request.eco_id.as_str() {
        "" => Some(EcoId::random(rng)),
        text => v.eco_id("eco_id", text),
    };
    let email = optional(&mut v, "email", &request.email, check_email);
    let plan = v.take("plan", plan_from_proto(request.plan)).flatten();
    let stripe_customer_id =
        optional(&mut v, "stripe_customer_id", &request.stripe_customer_id, check_stripe_id);
    let stripe_subscription_id =
        optional(&mut v, "stripe_subscription_id", &request.stripe_subscription_id, check_stripe_id);
    v.require(
        request.stripe_subscription_id.is_empty() || !request.stripe_customer_id.is_empty(),
        "stripe_customer_id",
        "is needed with a stripe_subscription_id",
    );
    let anchor_time =
        request.billing_anchor_time.as_ref().and_then(|at| v.take("billing_anchor_time", datetime(at)));
    let currency = match request.currency_code.as_str() {
        "" => Some(Currency::USD),
        code => v.take("currency_code", code.parse()),
    };
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let (Some(eco_id), Some(currency)) = (eco_id, currency) else { return Err(v) };
    v.finish()?;
    Ok(NewAccount {
        eco_id,
        email,
        plan: plan.unwrap_or(Plan::Free),
        stripe_customer_id,
        stripe_subscription_id,
        anchor_time,
        currency,
        request_id,
    })
}

fn optional(
    v: &mut Violations,
    field: &str,
    text: &str,
    check: fn(&str) -> Result<String, &'static str>,
) -> Option<String> {
    if text.is_empty() { None } else { v.take(field, check(text)) }
}

/// Which accounts are asked for.
pub(super) struct AccountPage {
    pub(super) plan: Option<Plan>,
    pub(super) size: i64,
    pub(super) after: Option<Cursor>,
}

/// Reads a request to list accounts.
pub(super) fn account_page(request: &pb::ListAccountsRequest) -> Result<AccountPage, Violations> {
    let mut v = Violations::new();
    let plan = v.take("plan", plan_from_proto(request.plan)).flatten();
    let size = v.take("page_size", page::size(request.page_size, 50, 1_000));
    let after = page::decode_timed(&plan, &request.page_token, |c: &(DateTime<Utc>, EcoId)| c.0);
    let after = v.take("page_token", after).flatten().map(|(time, id)| (time, id.into()));
    v.finish()?;
    Ok(AccountPage { plan, size: size.unwrap_or_default(), after })
}

/// An account for the wire.
pub(super) fn account(account: Account) -> pb::Account {
    let status = match account.closed_time {
        None => pb::AccountStatus::Active,
        Some(_) => pb::AccountStatus::Closed,
    };
    pb::Account {
        eco_id: account.eco_id,
        email: account.email.unwrap_or_default(),
        status: status.into(),
        plan: plan_to_proto(account.plan).into(),
        subscription_status: status_to_proto(account.subscription_status).into(),
        stripe_customer_id: account.stripe_customer_id.unwrap_or_default(),
        stripe_subscription_id: account.stripe_subscription_id.unwrap_or_default(),
        billing_anchor_time: Some(timestamp(account.anchor_time)),
        currency_code: account.currency_code,
        create_time: Some(timestamp(account.created_time)),
        close_time: account.closed_time.map(timestamp),
        spend_cap_micros: account.spend_cap.map(|cap| cap.0),
    }
}

/// Reads a request to close an account. A repeat has the same answer whatever its id, which must be one all the same.
pub(super) fn to_close(request: &pb::CloseAccountRequest) -> Result<EcoId, Violations> {
    let mut v = Violations::new();
    let eco_id = v.eco_id("eco_id", &request.eco_id);
    v.optional_uuid("request_id", &request.request_id);
    eco_id.filter(|_| v.0.is_empty()).ok_or(v)
}

/// Reads a request to change a plan.
pub(super) fn plan_change(caller: &Caller, request: &pb::ChangePlanRequest) -> Result<PlanChange, Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[Scope::AccountsWrite], &mut v)?;
    let plan = plan_from_proto(request.plan).and_then(|plan| plan.ok_or("is required"));
    let plan = v.take("plan", plan);
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let (Some(eco_id), Some(plan)) = (eco_id, plan) else { return Err(status::invalid(&v)) };
    v.finish().map_err(|v| status::invalid(&v))?;
    let by_user = matches!(caller, Caller::User { .. }) && !caller.is_admin();
    Ok(PlanChange { eco_id, plan, apply_now: request.apply_now, request_id, by_user })
}

/// The answer to it.
pub(super) fn plan_changed(changed: PlanChanged) -> pb::ChangePlanResponse {
    pb::ChangePlanResponse {
        account: Some(account(changed.account)),
        apply_time: Some(timestamp(changed.apply_time)),
    }
}

/// Reads a request to set a spend cap.
pub(super) fn spend_cap_change(
    caller: &Caller,
    request: &pb::SetSpendCapRequest,
) -> Result<SpendCapChange, Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[Scope::AccountsWrite], &mut v)?;
    let cap = request.spend_cap_micros.map(Micros);
    v.require(cap.is_none_or(|cap| cap.0 >= 0), "spend_cap_micros", "must be 0 or more");
    let currency = match request.currency_code.as_str() {
        "" => None,
        code => v.take("currency_code", code.parse()),
    };
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let Some(eco_id) = eco_id else { return Err(status::invalid(&v)) };
    v.finish().map_err(|v| status::invalid(&v))?;
    Ok(SpendCapChange { eco_id, cap, currency, request_id })
}

/// Reads a request to list plans: the page size and the plan it goes on after.
pub(super) fn plan_page(request: &pb::ListPlansRequest) -> Result<(i64, Option<Plan>), Violations> {
    let mut v = Violations::new();
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    let after = v.take("page_token", page::decode(&"plans", &request.page_token)).flatten();
    v.finish()?;
    Ok((size.unwrap_or_default(), after))
}

/// A plan for the wire.
pub(super) fn plan_version(version: PlanVersion) -> pb::PlanVersion {
    let prices = version.prices.into_iter().map(|price| pb::PlanPrice {
        currency_code: price.currency_code,
        monthly_micros: price.monthly_micros,
        overage_micros: price.overage_micros,
        overage_per_count: price.overage_per_units,
    });
    pb::PlanVersion {
        plan: plan_to_proto(version.plan).into(),
        version: version.version,
        included_count: version.included_units.unwrap_or(-1),
        hard_limit: version.hard_limit,
        prices: prices.collect(),
        create_time: Some(timestamp(version.created_time)),
    }
}

/// Micros of a price, and units it is for, at most. What usage costs by it may be more than can be counted all the same:
/// then its period is parked.
const MAX_PRICE: i64 = 1_000_000_000_000;

/// Reads a new version of a plan, and the request's id.
pub(super) fn new_version(request: pb::UpsertPlanRequest) -> Result<(NewPlanVersion, Uuid), Violations> {
    let mut v = Violations::new();
    let new = request.plan.unwrap_or_default();
    let plan = plan_from_proto(new.plan).and_then(|plan| plan.ok_or("is required"));
    let plan = v.take("plan.plan", plan);
    let included = new.included_count;
    v.require(included >= -1, "plan.included_count", "must be -1 (unlimited) or more");
    v.require(!(new.hard_limit && included == -1), "plan.hard_limit", "needs an included_count");
    v.require(!new.prices.is_empty(), "plan.prices", "must have at least one");
    let mut prices: Vec<PlanPrice> = Vec::new();
    for (i, price) in new.prices.into_iter().enumerate() {
        let field = |name: &str| format!("plan.prices[{i}].{name}");
        let code = v.take(&field("currency_code"), price.currency_code.parse::<Currency>());
        for (name, micros) in
            [("monthly_micros", price.monthly_micros), ("overage_micros", price.overage_micros)]
        {
            let in_range = (0..=MAX_PRICE).contains(&micros);
            v.require(in_range, &field(name), format!("must be 0 to {MAX_PRICE}"));
        }
        let in_range = (1..=MAX_PRICE).contains(&price.overage_per_count);
        v.require(in_range, &field("overage_per_count"), format!("must be 1 to {MAX_PRICE}"));
        let Some(currency) = code else { continue };
        let is_new = prices.iter().all(|known| known.currency_code != currency.as_str());
        v.require(is_new, &field("currency_code"), "must not be there twice");
        prices.push(PlanPrice {
            currency_code: currency.to_string(),
            monthly_micros: price.monthly_micros,
            overage_micros: price.overage_micros,
            overage_per_units: price.overage_per_count,
        });
    }
    prices.sort_by(|a, b| a.currency_code.cmp(&b.currency_code));
    v.require(!request.request_id.is_empty(), "request_id", "is required");
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let (Some(plan), Some(request_id)) = (plan, request_id) else { return Err(v) };
    v.finish()?;
    let included_units = (included >= 0).then_some(included);
    Ok((NewPlanVersion { plan, included_units, hard_limit: new.hard_limit, prices }, request_id))
}
