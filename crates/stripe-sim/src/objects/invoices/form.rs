//! The JSON form of an invoice.

use serde_json::{Value, json};

use crate::http::lists::{Page, list};
use crate::objects::customers::Customer;
use crate::objects::invoice_items::InvoiceItem;
use crate::objects::invoices::{Invoice, Line, PlanLine, Status};
use crate::objects::subscriptions::Subscription;
use crate::objects::{Kind, Object, Resource, form};
use crate::state::State;

/// Fields that no invoice here has.
const UNSET: [&str; 21] = [
    "account_tax_ids",
    "application",
    "custom_fields",
    "customer_address",
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
    "on_behalf_of",
    "receipt_number",
    "rendering",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
];

impl Resource for Invoice {
    const KIND: Kind = Kind::Invoice;

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
        let total = self.total(state);
        let due = self.due_amount(state);
        let paid = if self.status == Status::Paid { due } else { 0 };
        let parent = self.subscription.as_ref().map(|id| {
            let subscription = state.get::<Subscription>(id);
            json!({
                "quote_details": null,
                "subscription_details": {
                    "metadata": subscription.map(|it| &it.metadata),
                    "subscription": id,
                },
                "type": "subscription_details",
            })
        });
        let customer = state.get::<Customer>(&self.customer);
        let own = json!({
            "id": self.id,
            "amount_due": due,
            "amount_paid": paid,
            "amount_remaining": due - paid,
            "attempt_count": self.attempt_count,
            "attempted": self.attempt_count > 0 || paid > 0,
            "auto_advance": self.auto_advance,
            "automatically_finalizes_at": self.finalizes_at,
            "billing_reason": self.reason,
            "collection_method": self.collection_method,
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "customer_email": customer.and_then(Customer::email),
            "description": self.description,
            "due_date": self.due_date(),
            "effective_at": self.finalized_at,
            "ending_balance": self.ending_balance,
            "lines": self.render_lines(state),
            "metadata": self.metadata,
            "next_payment_attempt": self.next_payment_attempt,
            "number": self.number,
            "parent": parent,
            "period_end": self.period.map_or(self.created, |period| period.end),
            "period_start": self.period.map_or(self.created, |period| period.start),
            "starting_balance": self.starting_balance,
            "status": self.status,
            "status_transitions": {
                "finalized_at": self.finalized_at,
                "marked_uncollectible_at": self.uncollectible_at,
                "paid_at": self.paid_at,
                "voided_at": self.voided_at,
            },
            "subtotal": total,
            "subtotal_excluding_tax": total,
            "test_clock": customer.and_then(|customer| customer.test_clock.as_ref()),
            "total": total,
            "total_excluding_tax": total,
            "webhooks_delivered_at": self.webhooks_delivered_at,
        });
        form(&UNSET, [fixed(), own])
    }
}

impl Invoice {
    /// The first lines, as the invoice itself shows them.
    fn render_lines(&self, state: &State) -> Value {
        let lines: Vec<Value> = self.render_each_line(state).take(Page::EMBEDDED).collect();
        let has_more = self.items.len() > lines.len();
        list(&self.lines_url(), lines, has_more)
    }

    pub(super) fn render_each_line<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Value> + 'a {
        self.items.iter().filter_map(move |line| match line {
            Line::Item(id) => Some(state.get::<InvoiceItem>(id)?.render_line(state)),
            Line::Plan(line) => Some(self.render_plan_line(line)),
        })
    }

    fn render_plan_line(&self, line: &PlanLine) -> Value {
        json!({
            "id": line.id,
            "object": "line_item",
            "amount": line.amount,
            "currency": self.currency,
            "description": line.description,
            "discount_amounts": [],
            "discountable": true,
            "discounts": [],
            "invoice": self.id,
            "livemode": false,
            "metadata": {},
            "parent": {
                "invoice_item_details": null,
                "subscription_item_details": {
                    "invoice_item": null,
                    "proration": false,
                    "proration_details": { "credited_items": null },
                    "subscription": self.subscription,
                    "subscription_item": line.subscription_item,
                },
                "type": "subscription_item_details",
            },
            "period": line.period,
            "pretax_credit_amounts": [],
            "pricing": {
                "price_details": { "price": line.price, "product": line.product },
                "type": "price_details",
                "unit_amount_decimal": line.unit_amount_decimal,
            },
            "quantity": line.quantity,
            "quantity_decimal": line.quantity.to_string(),
            "subscription": self.subscription,
            "subtotal": line.amount,
            "taxes": [],
        })
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
        "total_discount_amounts": [],
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
    })
}
