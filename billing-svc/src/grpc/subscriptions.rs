//! The RPCs about subscriptions.

use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::{plan_from_proto, plan_to_proto, status_to_proto, timestamp},
    status,
    validate::Violations,
};
use nexus_proto::{
    billing::v1::{Subscription, *},
    common::v1 as common,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Service;
use crate::{
    app::{
        get_subscription,
        sales::{change, checkout},
    },
    domain::sale::ShownSubscription,
};

type Answer<T> = Result<Response<T>, Status>;

pub(super) async fn get(
    service: &Service,
    request: &Request<GetSubscriptionRequest>,
) -> Answer<GetSubscriptionResponse> {
    let eco_id = Caller::of(request)?.account(&request.get_ref().eco_id, &[Scope::AccountsWrite])?;
    let found = get_subscription::run(&service.pool, &eco_id).await?;
    Ok(Response::new(GetSubscriptionResponse { subscription: Some(shown(found)) }))
}

pub(super) async fn open_checkout(
    service: &Service,
    request: &Request<CreateCheckoutSessionRequest>,
) -> Answer<CreateCheckoutSessionResponse> {
    let caller = Caller::of(request)?;
    let (eco_id, plan, request_id) = parse_checkout(&caller, request.get_ref())?;
    let open = checkout::run(&service.sales, &eco_id, plan, request_id, &caller.subject()).await?;
    Ok(Response::new(CreateCheckoutSessionResponse { session_id: open.session_id, url: open.url }))
}

pub(super) async fn cancel(
    service: &Service,
    request: &Request<CancelSubscriptionRequest>,
) -> Answer<CancelSubscriptionResponse> {
    let caller = Caller::of(request)?;
    let CancelSubscriptionRequest { eco_id, apply_now, request_id } = request.get_ref();
    let (eco_id, request_id) = parse(&caller, eco_id, request_id)?;
    let actor = caller.subject();
    let found = change::end(&service.sales, &eco_id, *apply_now, request_id, &actor).await?;
    Ok(Response::new(CancelSubscriptionResponse { subscription: Some(shown(found)) }))
}

pub(super) async fn reactivate(
    service: &Service,
    request: &Request<ReactivateSubscriptionRequest>,
) -> Answer<ReactivateSubscriptionResponse> {
    let caller = Caller::of(request)?;
    let ReactivateSubscriptionRequest { eco_id, request_id } = request.get_ref();
    let (eco_id, request_id) = parse(&caller, eco_id, request_id)?;
    let found = change::go_on(&service.sales, &eco_id, request_id, &caller.subject()).await?;
    Ok(Response::new(ReactivateSubscriptionResponse { subscription: Some(shown(found)) }))
}

/// Reads which account a request is for, and its id.
fn parse(caller: &Caller, eco_id: &str, request_id: &str) -> Result<(EcoId, Option<Uuid>), Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(eco_id, &[Scope::AccountsWrite], &mut v)?;
    let request_id = v.optional_uuid("request_id", request_id);
    let Some(eco_id) = eco_id else { return Err(status::invalid(&v)) };
    v.finish().map_err(|v| status::invalid(&v))?;
    Ok((eco_id, request_id))
}

fn parse_checkout(
    caller: &Caller,
    request: &CreateCheckoutSessionRequest,
) -> Result<(EcoId, Plan, Option<Uuid>), Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, &[Scope::AccountsWrite], &mut v)?;
    let plan = plan_from_proto(request.plan).and_then(|plan| plan.ok_or("is required"));
    let plan = v.take("plan", plan);
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let (Some(eco_id), Some(plan)) = (eco_id, plan) else { return Err(status::invalid(&v)) };
    v.finish().map_err(|v| status::invalid(&v))?;
    Ok((eco_id, plan, request_id))
}

fn shown(found: ShownSubscription) -> Subscription {
    let (next_plan, next_plan_time) = found.next.unzip();
    Subscription {
        eco_id: found.eco_id,
        plan: plan_to_proto(found.plan).into(),
        status: status_to_proto(found.status).into(),
        period_start_time: Some(timestamp(found.period_start)),
        period_end_time: Some(timestamp(found.period_end)),
        next_plan: next_plan.map_or(common::Plan::Unspecified, plan_to_proto).into(),
        next_plan_time: next_plan_time.map(timestamp),
        cancel_time: found.cancel_time.map(timestamp),
        stripe_subscription_id: found.stripe_subscription_id.unwrap_or_default(),
        monthly_micros: found.monthly_micros,
        currency_code: found.currency_code,
    }
}
