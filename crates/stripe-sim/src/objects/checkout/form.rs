//! The JSON form of a checkout session.

use serde_json::{Value, json};

use crate::objects::checkout::{CheckoutSession, LineItem, Status};
use crate::objects::customers::Customer;
use crate::objects::prices::Price;
use crate::objects::{Kind, Object, Resource, form};
use crate::state::State;

/// Fields that no session here has.
const UNSET: [&str; 31] = [
    "adaptive_pricing",
    "after_expiration",
    "allow_promotion_codes",
    "billing_address_collection",
    "branding_settings",
    "client_secret",
    "collected_information",
    "consent",
    "consent_collection",
    "currency_conversion",
    "customer_account",
    "customer_creation",
    "invoice_creation",
    "locale",
    "name_collection",
    "optional_items",
    "origin_context",
    "payment_intent",
    "payment_link",
    "payment_method_configuration_details",
    "payment_method_options",
    "permissions",
    "presentment_details",
    "recovered_from",
    "saved_payment_method_options",
    "setup_intent",
    "shipping_address_collection",
    "shipping_cost",
    "submit_type",
    "wallet_options",
    "discounts",
];

impl Resource for CheckoutSession {
    const KIND: Kind = Kind::CheckoutSession;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn customer(&self) -> Option<&str> {
        self.customer.as_deref()
    }

    fn due(&self) -> Option<i64> {
        (self.status == Status::Open).then_some(self.expires_at)
    }

    fn render(&self, state: &State) -> Value {
        let whole: i64 = self.items.iter().map(|item| item.amount(state)).sum();
        let total = if self.has_trial() { 0 } else { whole };
        let customer = self.customer.as_ref().and_then(|id| state.get::<Customer>(id));
        let email = customer.and_then(Customer::email).or(self.customer_email.as_deref());
        let details = email.map(|email| {
            json!({
                "address": null,
                "business_name": null,
                "email": email,
                "individual_name": null,
                "name": null,
                "phone": null,
                "tax_exempt": "none",
                "tax_ids": [],
            })
        });
        let own = json!({
            "id": self.id,
            "object": "checkout.session",
            "amount_subtotal": total,
            "amount_total": total,
            "automatic_tax": { "enabled": false, "liability": null, "provider": null, "status": null },
            "cancel_url": self.cancel_url,
            "client_reference_id": self.client_reference_id,
            "created": self.created,
            "currency": self.currency,
            "custom_fields": [],
            "custom_text": {
                "after_submit": null,
                "shipping_address": null,
                "submit": null,
                "terms_of_service_acceptance": null,
            },
            "customer": self.customer,
            "customer_details": details,
            "customer_email": self.customer_email,
            "expires_at": self.expires_at,
            "invoice": self.invoice,
            "livemode": false,
            "metadata": self.metadata,
            "mode": "subscription",
            "payment_method_collection": "always",
            "payment_method_types": ["card"],
            "payment_status": self.payment_status(total),
            "phone_number_collection": { "enabled": false },
            "shipping_options": [],
            "status": self.status,
            "subscription": self.subscription,
            "success_url": self.success_url,
            "total_details": { "amount_discount": 0, "amount_shipping": 0, "amount_tax": 0 },
            "ui_mode": "hosted_page",
            "url": self.url,
        });
        form(&UNSET, [own])
    }
}

impl CheckoutSession {
    fn has_trial(&self) -> bool {
        ["trial_end", "trial_period_days"].iter().any(|field| self.subscription_data.contains_key(*field))
    }

    fn payment_status(&self, total: i64) -> &'static str {
        match self.status {
            Status::Complete if total == 0 => "no_payment_required",
            Status::Complete => "paid",
            Status::Open | Status::Expired => "unpaid",
        }
    }
}

impl LineItem {
    pub(super) fn render(&self, state: &State) -> Value {
        let amount = self.amount(state);
        let price = state.get::<Price>(&self.price);
        json!({
            "id": self.id,
            "object": "item",
            "amount_discount": 0,
            "amount_subtotal": amount,
            "amount_tax": 0,
            "amount_total": amount,
            "currency": price.map(|price| &price.currency),
            "description": price.map(|price| &price.product),
            "metadata": {},
            "price": price.map(|price| price.render(state)),
            "quantity": self.quantity,
        })
    }
}
