//! Requests about customers' webhooks and usage thresholds.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::{
    auth::{Caller, Scope},
    convert::plan_from_proto,
    page, status,
    validate::Violations,
};
use nexus_proto::billing::v1 as pb;
use tonic::Status;
use uuid::Uuid;

use crate::{
    app::webhooks::rotate_secret::Rotation,
    domain::{
        threshold::check_percents,
        webhook::{
            EndpointChange, MAX_DESCRIPTION, NewEndpoint,
            delivery::DeliveryStatus,
            event::{self, EventType},
            signature::{DEFAULT_GRACE_MS, MAX_GRACE_MS},
            url::Policy,
        },
    },
};

const SCOPES: &[Scope] = &[Scope::AccountsWrite];

/// Reads a request to create an endpoint.
pub(super) fn new_endpoint(
    caller: &Caller,
    policy: &Policy,
    endpoint_id: Uuid,
    request: &pb::CreateWebhookEndpointRequest,
) -> Result<NewEndpoint, Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, SCOPES, &mut v)?;
    v.take("url", policy.target(&request.url));
    check_description(&mut v, &request.description);
    let event_types = event_types(&mut v, "event_types", &request.event_types);
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let eco_id = finish(v, eco_id)?;
    let (url, description) = (request.url.clone(), request.description.clone());
    Ok(NewEndpoint { endpoint_id, eco_id, url, description, event_types, request_id })
}

/// Which endpoint of which account a request is about.
pub(super) struct Asked {
    pub(super) eco_id: EcoId,
    pub(super) endpoint_id: Uuid,
}

/// Reads a request to change an endpoint.
pub(super) fn endpoint_change(
    caller: &Caller,
    policy: &Policy,
    request: &pb::UpdateWebhookEndpointRequest,
) -> Result<(Asked, EndpointChange), Status> {
    let mut v = Violations::new();
    let asked = asked(caller, &request.eco_id, &request.endpoint_id, &mut v)?;
    if let Some(url) = &request.url {
        v.take("url", policy.target(url));
    }
    if let Some(description) = &request.description {
        check_description(&mut v, description);
    }
    let filter = request.event_filter.as_ref();
    let event_types =
        filter.map(|filter| event_types(&mut v, "event_filter.event_types", &filter.event_types));
    let asked = finish(v, asked)?;
    let (url, description, enabled) = (request.url.clone(), request.description.clone(), request.enabled);
    Ok((asked, EndpointChange { url, description, event_types, enabled }))
}

/// Reads a request that names an endpoint and nothing more.
pub(super) fn endpoint_asked(caller: &Caller, eco_id: &str, endpoint_id: &str) -> Result<Asked, Status> {
    let mut v = Violations::new();
    let asked = asked(caller, eco_id, endpoint_id, &mut v)?;
    finish(v, asked)
}

/// Reads a request to send a test.
pub(super) fn test_asked(
    caller: &Caller,
    request: &pb::SendTestWebhookRequest,
) -> Result<(Asked, Option<Uuid>), Status> {
    let mut v = Violations::new();
    let asked = asked(caller, &request.eco_id, &request.endpoint_id, &mut v)?;
    let request_id = v.optional_uuid("request_id", &request.request_id);
    Ok((finish(v, asked)?, request_id))
}

/// Reads a request to send a message again: also which, and the request's id.
pub(super) fn redelivery(
    caller: &Caller,
    request: &pb::RedeliverWebhookRequest,
) -> Result<(Asked, Uuid, Option<Uuid>), Status> {
    let mut v = Violations::new();
    let asked = asked(caller, &request.eco_id, &request.endpoint_id, &mut v)?;
    let message_id = event::message_id(&request.webhook_id).ok_or("must be a webhook_id of a delivery");
    let message_id = v.take("webhook_id", message_id);
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let (asked, message_id) = finish(v, asked.zip(message_id))?;
    Ok((asked, message_id, request_id))
}

/// Reads a request for a new secret.
pub(super) fn rotation(
    caller: &Caller,
    request: &pb::RotateWebhookSecretRequest,
) -> Result<Rotation, Status> {
    let mut v = Violations::new();
    let asked = asked(caller, &request.eco_id, &request.endpoint_id, &mut v)?;
    let grace = request.grace_period_ms.unwrap_or(DEFAULT_GRACE_MS);
    v.require((0..=MAX_GRACE_MS).contains(&grace), "grace_period_ms", "must be from 0 to 30 days");
    let request_id = v.optional_uuid("request_id", &request.request_id);
    let Asked { eco_id, endpoint_id } = finish(v, asked)?;
    Ok(Rotation { eco_id, endpoint_id, grace: TimeDelta::milliseconds(grace), request_id })
}

/// A place in a list: a time, and an id.
pub(super) type Cursor = (DateTime<Utc>, Uuid);

/// Which endpoints are asked for.
pub(super) struct EndpointPage {
    pub(super) eco_id: EcoId,
    pub(super) size: i64,
    pub(super) after: Option<Cursor>,
}

impl EndpointPage {
    /// Token of the next page.
    pub(super) fn token(&self, next: &Cursor) -> String {
        page::encode(&self.eco_id, next)
    }
}

/// Reads a request to list endpoints.
pub(super) fn endpoint_page(
    caller: &Caller,
    request: &pb::ListWebhookEndpointsRequest,
) -> Result<EndpointPage, Status> {
    let mut v = Violations::new();
    let eco_id = caller.account_among(&request.eco_id, SCOPES, &mut v)?;
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    let after = eco_id.as_ref().and_then(|eco_id| cursor(&mut v, eco_id, &request.page_token));
    let (eco_id, size) = finish(v, eco_id.zip(size))?;
    Ok(EndpointPage { eco_id, size, after })
}

/// Which deliveries are asked for.
pub(super) struct DeliveryPage {
    pub(super) asked: Asked,
    pub(super) status: Option<DeliveryStatus>,
    pub(super) size: i64,
    pub(super) after: Option<Cursor>,
}

impl DeliveryPage {
    /// What a page token is bound to.
    fn filter(endpoint_id: Uuid, status: Option<DeliveryStatus>) -> (Uuid, Option<&'static str>) {
        (endpoint_id, status.map(DeliveryStatus::as_str))
    }

    /// Token of the next page.
    pub(super) fn token(&self, next: &Cursor) -> String {
        page::encode(&Self::filter(self.asked.endpoint_id, self.status), next)
    }
}

/// Reads a request to list deliveries.
pub(super) fn delivery_page(
    caller: &Caller,
    request: &pb::ListWebhookDeliveriesRequest,
) -> Result<DeliveryPage, Status> {
    use pb::WebhookDeliveryStatus as S;
    let mut v = Violations::new();
    let asked = asked(caller, &request.eco_id, &request.endpoint_id, &mut v)?;
    let status = S::try_from(request.status).map_err(|_| "must be a known status");
    let status = v.take("status", status).and_then(|status| match status {
        S::Unspecified => None,
        S::Pending => Some(DeliveryStatus::Pending),
        S::Succeeded => Some(DeliveryStatus::Succeeded),
        S::Failed => Some(DeliveryStatus::Failed),
    });
    let size = v.take("page_size", page::size(request.page_size, 50, 100));
    let after = asked.as_ref().and_then(|asked| {
        cursor(&mut v, &DeliveryPage::filter(asked.endpoint_id, status), &request.page_token)
    });
    let (asked, size) = finish(v, asked.zip(size))?;
    Ok(DeliveryPage { asked, status, size, after })
}

/// Reads a request to set thresholds.
pub(super) fn thresholds(request: &pb::SetUsageThresholdsRequest) -> Result<(Plan, Vec<i32>), Violations> {
    let mut v = Violations::new();
    let Some(asked) = &request.thresholds else { return Err(Violations::one("thresholds", "is required")) };
    let plan = plan_from_proto(asked.plan).and_then(|plan| plan.ok_or("is required"));
    let plan = v.take("thresholds.plan", plan);
    let percents = v.take("thresholds.percents", check_percents(&asked.percents));
    let (Some(plan), Some(percents)) = (plan, percents) else { return Err(v) };
    Ok((plan, percents))
}

fn asked(
    caller: &Caller,
    eco_id: &str,
    endpoint_id: &str,
    v: &mut Violations,
) -> Result<Option<Asked>, Status> {
    let eco_id = caller.account_among(eco_id, SCOPES, v)?;
    let endpoint_id = v.take("endpoint_id", endpoint_id.parse::<Uuid>().map_err(|_| "must be a UUID"));
    Ok(eco_id.zip(endpoint_id).map(|(eco_id, endpoint_id)| Asked { eco_id, endpoint_id }))
}

/// What was read, if nothing is at fault.
fn finish<T>(v: Violations, read: Option<T>) -> Result<T, Status> {
    match read {
        Some(read) => v.finish().map(|()| read).map_err(|v| status::invalid(&v)),
        None => Err(status::invalid(&v)),
    }
}

fn cursor(v: &mut Violations, filter: &impl serde::Serialize, token: &str) -> Option<Cursor> {
    v.take("page_token", page::decode_timed(filter, token, |c: &Cursor| c.0)).flatten()
}

fn check_description(v: &mut Violations, description: &str) {
    let fits = description.chars().count() <= MAX_DESCRIPTION;
    v.require(
        fits && !description.contains('\0'),
        "description",
        "must have at most 256 characters, and no NUL",
    );
}

fn event_types(v: &mut Violations, field: &str, words: &[String]) -> Vec<EventType> {
    let mut types = Vec::new();
    for (i, word) in words.iter().enumerate().take(EventType::ALL.len() + 1) {
        let field = format!("{field}[{i}]");
        match word.parse::<EventType>() {
            Ok(EventType::WebhookTest) => v.add(field, "comes when it is asked for, whatever the filter"),
            Ok(known) if types.contains(&known) => v.add(field, "must not repeat an entry"),
            Ok(known) => types.push(known),
            Err(_) => v.add(field, "must be a known type of event"),
        }
    }
    types
}
