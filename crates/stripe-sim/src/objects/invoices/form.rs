//! The JSON form of an invoice.

use serde_json::{Value, json};

use crate::http::lists::{Page, list};
use crate::objects::invoices::{Invoice, Status};
use crate::objects::{Kind, Object, Resource, form};
use crate::state::View;

/// Fields that no invoice here has.
const UNSET: [&str; 26] = [
    "account_tax_ids",
    "application",
    "automatically_finalizes_at",
    "custom_fields",
    "customer_address",
    "customer_email",
    "customer_name",
    "customer_phone",
    "customer_shipping",
    "default_payment_method",
    "default_source",
    "footer",
    "from_invoice",
    "hosted_invoice_url",
    "invoice_pdf",
    "last_finalization_error",
    "latest_revision",
    "next_payment_attempt",
    "on_behalf_of",
    "receipt_number",
    "rendering",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
    "test_clock",
    "webhooks_delivered_at",
];

impl Resource for Invoice {
    const KIND: Kind = Kind::Invoice;

    fn from_object(object: &Object) -> Option<&Self> {
        Self::variant_of(object)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn render(&self, view: &View<'_>) -> Value {
        let total = self.total(view);
        let due = total.max(0);
        let paid = if self.status == Status::Paid { due } else { 0 };
        let parent = self.subscription.as_ref().map(|subscription| {
            json!({
                "quote_details": null,
                "subscription_details": { "metadata": {}, "subscription": subscription },
                "type": "subscription_details",
            })
        });
        let due_date = self.days_until_due.map(|days| self.created + days * 86_400);
        let own = json!({
            "id": self.id,
            "amount_due": due,
            "amount_paid": paid,
            "amount_remaining": due - paid,
            "attempt_count": u32::from(paid > 0),
            "attempted": paid > 0,
            "auto_advance": self.auto_advance,
            "collection_method": self.collection_method,
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "description": self.description,
            "due_date": due_date,
            "effective_at": self.finalized_at,
            "ending_balance": self.finalized_at.map(|_| 0),
            "lines": self.render_lines(view),
            "metadata": self.metadata,
            "number": self.number,
            "parent": parent,
            "period_end": self.created,
            "period_start": self.created,
            "status": self.status,
            "status_transitions": {
                "finalized_at": self.finalized_at,
                "marked_uncollectible_at": null,
                "paid_at": self.paid_at,
                "voided_at": self.voided_at,
            },
            "subtotal": total,
            "subtotal_excluding_tax": total,
            "total": total,
            "total_excluding_tax": total,
        });
        form(&UNSET, [fixed(), own])
    }
}

impl Invoice {
    /// The first lines, as the invoice itself shows them.
    fn render_lines(&self, view: &View<'_>) -> Value {
        let lines: Vec<Value> =
            self.items(view).take(Page::EMBEDDED).map(|item| item.render_line(view)).collect();
        let has_more = self.items.len() > lines.len();
        list(&self.lines_url(), lines, has_more)
    }
}

/// The fields that are the same on every invoice here.
fn fixed() -> Value {
    json!({
        "object": "invoice",
        "account_country": "US",
        "account_name": "stripe-sim",
        "amount_overpaid": 0,
        "amount_shipping": 0,
        "automatic_tax": {
            "disabled_reason": null,
            "enabled": false,
            "liability": null,
            "provider": null,
            "status": null,
        },
        "billing_reason": "manual",
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "issuer": { "type": "self" },
        "livemode": false,
        "payment_settings": {
            "default_mandate": null,
            "payment_method_options": null,
            "payment_method_types": null,
        },
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "total_discount_amounts": [],
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
    })
}
