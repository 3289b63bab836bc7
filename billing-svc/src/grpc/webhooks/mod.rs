//! The RPCs about customers' webhooks and usage thresholds.

mod answer;
mod parse;

use nexus_kit::{auth::Caller, convert::timestamp};
use nexus_proto::billing::v1::*;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Service;
use crate::{
    app::{usage_thresholds, webhooks},
    domain::webhook::signature::Secret,
    error::Error,
};

type Answer<T> = Result<Response<T>, Status>;

pub(super) async fn create(
    service: &Service,
    request: &Request<CreateWebhookEndpointRequest>,
) -> Answer<CreateWebhookEndpointResponse> {
    let caller = Caller::of(request)?;
    let new = parse::new_endpoint(&caller, &service.webhook_policy, Uuid::now_v7(), request.get_ref())?;
    let secret = Secret::random(&mut rand::rng());
    let (endpoint, secret) =
        webhooks::create_endpoint::run(&service.pool, &new, secret, &caller.subject()).await?;
    Ok(Response::new(CreateWebhookEndpointResponse {
        endpoint: Some(answer::endpoint(endpoint)),
        secret: secret.map(|secret| secret.expose()).unwrap_or_default(),
    }))
}

pub(super) async fn list(
    service: &Service,
    request: &Request<ListWebhookEndpointsRequest>,
) -> Answer<ListWebhookEndpointsResponse> {
    let asked = parse::endpoint_page(&Caller::of(request)?, request.get_ref())?;
    let (endpoints, next) =
        webhooks::list_endpoints::run(&service.pool, &asked.eco_id, asked.after.as_ref(), asked.size).await?;
    Ok(Response::new(ListWebhookEndpointsResponse {
        endpoints: endpoints.into_iter().map(answer::endpoint).collect(),
        next_page_token: next.map(|cursor| asked.token(&cursor)).unwrap_or_default(),
    }))
}

pub(super) async fn update(
    service: &Service,
    request: &Request<UpdateWebhookEndpointRequest>,
) -> Answer<UpdateWebhookEndpointResponse> {
    let caller = Caller::of(request)?;
    let (asked, change) = parse::endpoint_change(&caller, &service.webhook_policy, request.get_ref())?;
    let actor = caller.subject();
    let endpoint =
        webhooks::update_endpoint::run(&service.pool, &asked.eco_id, asked.endpoint_id, &change, &actor)
            .await?;
    Ok(Response::new(UpdateWebhookEndpointResponse { endpoint: Some(answer::endpoint(endpoint)) }))
}

pub(super) async fn delete(
    service: &Service,
    request: &Request<DeleteWebhookEndpointRequest>,
) -> Answer<DeleteWebhookEndpointResponse> {
    let (caller, pb) = (Caller::of(request)?, request.get_ref());
    let asked = parse::endpoint_asked(&caller, &pb.eco_id, &pb.endpoint_id)?;
    webhooks::delete_endpoint::run(&service.pool, &asked.eco_id, asked.endpoint_id, &caller.subject())
        .await?;
    Ok(Response::new(DeleteWebhookEndpointResponse {}))
}

pub(super) async fn rotate(
    service: &Service,
    request: &Request<RotateWebhookSecretRequest>,
) -> Answer<RotateWebhookSecretResponse> {
    let caller = Caller::of(request)?;
    let rotation = parse::rotation(&caller, request.get_ref())?;
    let secret = Secret::random(&mut rand::rng());
    let rotated = webhooks::rotate_secret::run(&service.pool, &rotation, secret, &caller.subject()).await?;
    Ok(Response::new(RotateWebhookSecretResponse {
        secret: rotated.secret.map(|secret| secret.expose()).unwrap_or_default(),
        old_secret_expire_time: rotated.before_end_time.map(timestamp),
    }))
}

pub(super) async fn deliveries(
    service: &Service,
    request: &Request<ListWebhookDeliveriesRequest>,
) -> Answer<ListWebhookDeliveriesResponse> {
    let page = parse::delivery_page(&Caller::of(request)?, request.get_ref())?;
    let (eco_id, endpoint_id) = (&page.asked.eco_id, page.asked.endpoint_id);
    let (deliveries, next) = webhooks::list_deliveries::run(
        &service.pool,
        eco_id,
        endpoint_id,
        page.status,
        page.after,
        page.size,
    )
    .await?;
    Ok(Response::new(ListWebhookDeliveriesResponse {
        deliveries: deliveries.into_iter().map(answer::delivery).collect(),
        next_page_token: next.map(|cursor| page.token(&cursor)).unwrap_or_default(),
    }))
}

pub(super) async fn redeliver(
    service: &Service,
    request: &Request<RedeliverWebhookRequest>,
) -> Answer<RedeliverWebhookResponse> {
    let (asked, message_id, request_id) = parse::redelivery(&Caller::of(request)?, request.get_ref())?;
    let (eco_id, endpoint_id) = (&asked.eco_id, asked.endpoint_id);
    let delivery =
        webhooks::redeliver::run(&service.pool, eco_id, endpoint_id, message_id, request_id).await?;
    Ok(Response::new(RedeliverWebhookResponse { delivery: Some(answer::delivery(delivery)) }))
}

pub(super) async fn test(
    service: &Service,
    request: &Request<SendTestWebhookRequest>,
) -> Answer<SendTestWebhookResponse> {
    let (asked, request_id) = parse::test_asked(&Caller::of(request)?, request.get_ref())?;
    let (eco_id, endpoint_id) = (&asked.eco_id, asked.endpoint_id);
    let delivery =
        webhooks::send_test::run(&service.pool, eco_id, endpoint_id, Uuid::now_v7(), request_id).await?;
    Ok(Response::new(SendTestWebhookResponse { delivery: Some(answer::delivery(delivery)) }))
}

pub(super) async fn thresholds(
    service: &Service,
    request: &Request<GetUsageThresholdsRequest>,
) -> Answer<GetUsageThresholdsResponse> {
    Caller::of(request)?;
    let thresholds = usage_thresholds::get(&service.pool).await?;
    Ok(Response::new(GetUsageThresholdsResponse {
        thresholds: thresholds.into_iter().map(answer::usage_thresholds).collect(),
    }))
}

pub(super) async fn set_thresholds(
    service: &Service,
    request: &Request<SetUsageThresholdsRequest>,
) -> Answer<SetUsageThresholdsResponse> {
    let caller = Caller::of(request)?;
    caller.require_admin_or(&[])?;
    let (plan, percents) = parse::thresholds(request.get_ref()).map_err(Error::from)?;
    usage_thresholds::set(&service.pool, plan, &percents, &caller.subject()).await?;
    Ok(Response::new(SetUsageThresholdsResponse {
        thresholds: Some(answer::usage_thresholds((plan, percents))),
    }))
}
