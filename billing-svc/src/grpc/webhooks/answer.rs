//! Answers about customers' webhooks and usage thresholds.

use nexus_core::plan::Plan;
use nexus_kit::convert::{plan_to_proto, timestamp};
use nexus_proto::billing::v1 as pb;

use crate::domain::webhook::{
    DisabledReason, Endpoint,
    delivery::{Attempt, Delivery, DeliveryStatus},
    event,
};

/// An endpoint for the wire.
pub(super) fn endpoint(endpoint: Endpoint) -> pb::WebhookEndpoint {
    use pb::WebhookDisabledReason as R;
    let reason = match endpoint.disabled {
        None => R::Unspecified,
        Some((DisabledReason::ByUser, _)) => R::ByUser,
        Some((DisabledReason::Gone, _)) => R::Gone,
        Some((DisabledReason::Failing, _)) => R::Failing,
    };
    pb::WebhookEndpoint {
        endpoint_id: endpoint.endpoint_id.to_string(),
        eco_id: endpoint.eco_id,
        url: endpoint.url,
        description: endpoint.description,
        event_types: endpoint.event_types.into_iter().map(|t| t.as_str().to_owned()).collect(),
        enabled: endpoint.disabled.is_none(),
        disabled_reason: reason.into(),
        disable_time: endpoint.disabled.map(|(_, time)| timestamp(time)),
        failing_since_time: endpoint.failing_since.map(timestamp),
        create_time: Some(timestamp(endpoint.created_time)),
    }
}

/// A delivery for the wire.
pub(super) fn delivery(delivery: Delivery) -> pb::WebhookDelivery {
    use pb::WebhookDeliveryStatus as S;
    let (status, next) = match delivery.status {
        DeliveryStatus::Pending => (S::Pending, (!delivery.held).then(|| timestamp(delivery.due_time))),
        DeliveryStatus::Succeeded => (S::Succeeded, None),
        DeliveryStatus::Failed => (S::Failed, None),
    };
    pb::WebhookDelivery {
        webhook_id: event::webhook_id(delivery.message_id),
        endpoint_id: delivery.endpoint_id.to_string(),
        event_type: delivery.event_type.as_str().to_owned(),
        payload: delivery.payload,
        status: status.into(),
        next_attempt_time: next,
        create_time: Some(timestamp(delivery.created_time)),
        finish_time: delivery.finished_time.map(timestamp),
        attempts: delivery.attempts.into_iter().map(attempt).collect(),
    }
}

fn attempt(attempt: Attempt) -> pb::WebhookAttempt {
    pb::WebhookAttempt {
        attempt: attempt.attempt,
        start_time: Some(timestamp(attempt.started_time)),
        duration_ms: attempt.duration_ms,
        http_status: attempt.http_status.unwrap_or_default(),
        error: attempt.error.unwrap_or_default(),
    }
}

/// Percentages of a plan for the wire.
pub(super) fn usage_thresholds((plan, percents): (Plan, Vec<i32>)) -> pb::UsageThresholds {
    pb::UsageThresholds { plan: plan_to_proto(plan).into(), percents }
}
