//! The JSON form of a subscription.

use serde_json::{Value, json};

use crate::http::lists::list;
use crate::objects::prices::Price;
use crate::objects::subscriptions::{Item, Period, Subscription};
use crate::objects::{Kind, Object, Resource, form};
use crate::state::State;

/// Fields that no subscription here has.
const UNSET: [&str; 13] = [
    "application",
    "application_fee_percent",
    "billing_cycle_anchor_config",
    "billing_thresholds",
    "default_payment_method",
    "default_source",
    "next_pending_invoice_item_invoice",
    "on_behalf_of",
    "pending_invoice_item_interval",
    "pending_setup_intent",
    "pending_update",
    "schedule",
    "transfer_data",
];

impl Resource for Subscription {
    const KIND: Kind = Kind::Subscription;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn customer(&self) -> Option<&str> {
        Some(&self.customer)
    }

    fn due(&self) -> Option<i64> {
        self.next_due()
    }

    fn render(&self, state: &State) -> Value {
        let items = self.items.iter().map(|item| self.render_item(item, state)).collect();
        let items_url = format!("/v1/subscription_items?subscription={}", self.id);
        let own = json!({
            "id": self.id,
            "object": "subscription",
            "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
            "billing_cycle_anchor": self.billing_cycle_anchor,
            "billing_mode": { "flexible": null, "type": "classic" },
            "billing_schedules": [],
            "cancel_at": self.cancel_at,
            "cancel_at_period_end": self.cancel_at.is_some() && !self.own_cancel_at,
            "canceled_at": self.canceled_at,
            "cancellation_details": {
                "comment": self.cancellation_comment,
                "feedback": self.cancellation_feedback,
                "reason": self.cancellation_reason,
            },
            "collection_method": self.collection_method,
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "days_until_due": self.days_until_due,
            "default_tax_rates": [],
            "description": self.description,
            "discounts": [],
            "ended_at": self.ended_at,
            "invoice_settings": { "account_tax_ids": null, "issuer": { "type": "self" } },
            "items": list(&items_url, items, false),
            "latest_invoice": self.latest_invoice,
            "livemode": false,
            "metadata": self.metadata,
            "pause_collection": self.pause,
            "payment_settings": {
                "payment_method_options": null,
                "payment_method_types": null,
                "save_default_payment_method": "off",
            },
            "start_date": self.created,
            "status": self.status(),
            "test_clock": self.test_clock(state),
            "trial_end": self.trial.map(|trial| trial.end),
            "trial_settings": { "end_behavior": { "missing_payment_method": "create_invoice" } },
            "trial_start": self.trial.map(|trial| trial.start),
        });
        form(&UNSET, [own])
    }
}

impl Subscription {
    fn render_item(&self, item: &Item, state: &State) -> Value {
        let Period { start, end } = self.current_period();
        let price = state.get::<Price>(&item.price);
        json!({
            "id": item.id,
            "object": "subscription_item",
            "billing_thresholds": null,
            "created": self.created,
            "current_period_end": end,
            "current_period_start": start,
            "discounts": [],
            "metadata": item.metadata,
            "plan": price.map(|price| price.render_plan(&self.recurring)),
            "price": price.map(|price| price.render(state)),
            "quantity": item.quantity,
            "subscription": self.id,
            "tax_rates": [],
        })
    }
}
