//! An account's invoices at Stripe, as Stripe last told of them.

use maud::{Markup, html};
use nexus_proto::{
    billing::v1::{self as billing, InvoiceStatus},
    common::v1::SubscriptionStatus,
};

use super::{
    part::{self, Column},
    show,
};
use crate::{convert, error::Error};

/// What is to be paid, and where; nothing where nothing is.
pub fn to_pay(status: SubscriptionStatus, invoices: &[billing::Invoice]) -> Result<Markup, Error> {
    let open = invoices.iter().filter(|invoice| is_to_pay(invoice)).collect::<Vec<_>>();
    let late = matches!(
        status,
        SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid | SubscriptionStatus::Incomplete
    );
    if !late && open.iter().all(|invoice| !invoice.attempted) {
        return Ok(html! {});
    }
    Ok(html! {
        div class="notice alert" role="status" {
            @if late { p { "The subscription is " strong { (show::status(status).to_lowercase()) } ": a payment is missing." } }
            @for invoice in &open {
                p {
                    (show::money(invoice.remaining_micros, &invoice.currency_code)?) " of invoice " (name(invoice)) " is to be paid"
                    @if invoice.attempted { "; Stripe has tried to collect it" }
                    ". "
                    @if !invoice.hosted_url.is_empty() { (link(invoice, "Pay it at Stripe")) }
                }
            }
            @if open.is_empty() { p { "Stripe has told of no invoice that is open. It sends its invoices by email." } }
        }
    })
}

fn is_to_pay(invoice: &billing::Invoice) -> bool {
    invoice.status() == InvoiceStatus::Open && invoice.remaining_micros > 0
}

/// All of them, newest first.
pub fn list(invoices: &[billing::Invoice]) -> Result<Markup, Error> {
    let table = part::table(
        "Invoices, newest first",
        &[
            Column::Text("Date"),
            Column::Text("Invoice"),
            Column::Number("Amount"),
            Column::Number("To pay"),
            Column::Text("State"),
            Column::Unseen("Page at Stripe"),
        ],
        &html! {
            @for invoice in invoices {
                tr {
                    th scope="row" { (show::date(convert::required_time("create_time", invoice.create_time.as_ref())?)) }
                    td class="code" { (name(invoice)) }
                    td class="number" { (show::money(invoice.due_micros, &invoice.currency_code)?) }
                    td class="number" { @if is_to_pay(invoice) { (show::money(invoice.remaining_micros, &invoice.currency_code)?) } @else { "–" } }
                    td { (state(invoice)) }
                    td { @if !invoice.hosted_url.is_empty() { (link(invoice, "Open at Stripe")) } }
                }
            }
        },
    );
    Ok(html! {
        section aria-labelledby="invoices" {
            h2 id="invoices" { "Invoices" }
            @if invoices.is_empty() { (part::empty("Stripe has told of no invoice.")) }
            @else {
                (part::scroll("Invoices", &table))
                p class="hint" { "The newest, each as Stripe last told of it." }
            }
        }
    })
}

fn name(invoice: &billing::Invoice) -> &str {
    if invoice.number.is_empty() { &invoice.stripe_invoice_id } else { &invoice.number }
}

fn link(invoice: &billing::Invoice, text: &str) -> Markup {
    html! { a href=(invoice.hosted_url) rel="noreferrer" { (text) span class="unseen" { ": " (name(invoice)) } } }
}

fn state(invoice: &billing::Invoice) -> Markup {
    match invoice.status() {
        InvoiceStatus::Draft => part::badge("Draft", "plain"),
        InvoiceStatus::Open if invoice.attempted => part::badge("Open, not collected", "bad"),
        InvoiceStatus::Open => part::badge("Open", "plain"),
        InvoiceStatus::Paid => part::badge("Paid", "good"),
        InvoiceStatus::Uncollectible => part::badge("Given up", "bad"),
        InvoiceStatus::Void => part::badge("Void", "plain"),
        InvoiceStatus::Unspecified => part::badge("Unknown", "plain"),
    }
}
