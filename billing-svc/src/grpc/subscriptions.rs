//! Requests and answers about subscriptions.

use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::{plan_from_proto, plan_to_proto, status_to_proto, timestamp},
    status,
    validate::Violations,
};
use nexus_proto::{billing::v1 as pb, common::v1 as common};
use tonic::Status;

use crate::app::get_subscription::Shown;

/// Reads a request for a checkout.
pub(super) fn checkout(
    caller: &Caller,
    request: &pb::CreateCheckoutSessionRequest,
) -> Result<(EcoId, Plan), Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[Scope::AccountsWrite], &mut v)?;
    let plan = plan_from_proto(request.plan).and_then(|plan| plan.ok_or("is required"));
    let plan = v.take("plan", plan);
    let (Some(eco_id), Some(plan)) = (eco_id, plan) else { return Err(status::invalid(&v)) };
    v.finish().map_err(|v| status::invalid(&v))?;
    Ok((eco_id, plan))
}

/// A subscription for the wire.
pub(super) fn shown(shown: Shown) -> pb::Subscription {
    let Shown { account, subscription, monthly } = shown;
    // A newer version of the own plan is no other plan.
    let next = subscription.waiting.filter(|waiting| {
        waiting.time > subscription.now && waiting.plan != account.plan && account.closed_time.is_none()
    });
    let has_ended = account.closed_time.is_some();
    pb::Subscription {
        eco_id: account.eco_id,
        plan: plan_to_proto(account.plan).into(),
        status: status_to_proto(account.subscription_status).into(),
        period_start_time: Some(timestamp(subscription.period.start)),
        period_end_time: Some(timestamp(subscription.period.end)),
        next_plan: next.map_or(common::Plan::Unspecified, |next| plan_to_proto(next.plan)).into(),
        next_plan_time: next.map(|next| timestamp(next.time)),
        cancel_time: subscription.cancel_time.filter(|_| !has_ended).map(timestamp),
        stripe_subscription_id: account.stripe_subscription_id.unwrap_or_default(),
        monthly_micros: monthly.map(|monthly| monthly.0),
        currency_code: account.currency_code,
    }
}
