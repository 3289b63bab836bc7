//! [`Payments`] and [`Subscriptions`](super::subscriptions::Subscriptions) at Stripe, by async-stripe's requests over
//! a client of ours.

mod books;
mod client;
mod invoices;
mod items;
mod listed;
mod listing;
mod reading;
mod sales;
mod subscriptions;

use std::collections::{BTreeMap, HashMap};

use futures::{TryFutureExt, future::BoxFuture};
use stripe_client_core::{IdempotencyKey, RequestStrategy};
use tracing::Instrument;
use uuid::Uuid;

pub use client::{ErrorAnswer, ErrorObject, HttpClient, RequestError, StripeConfigError};

use reading::Made;

use super::{Advice, Doubt, FoundInvoice, FoundItem, Outcome, Payments, Place, Refusal, pace::Pace};
use crate::{
    config::{Proration, StripeArgs},
    domain::{charge::InvoiceItem, invoice::NewInvoice},
};

/// Stripe.
#[derive(Debug, Clone)]
pub struct Stripe {
    client: HttpClient,
    proration: Proration,
}

impl Stripe {
    /// Reads the settings; connects when first used.
    pub fn new(args: &StripeArgs) -> Result<Self, StripeConfigError> {
        Ok(Self { client: HttpClient::new(args)?, proration: args.stripe_proration })
    }
}

impl Payments for Stripe {
    fn create_invoice_item<'a>(&'a self, item: &'a InvoiceItem, key: &'a str) -> BoxFuture<'a, Outcome> {
        let span = tracing::info_span!(
            "stripe.create_invoice_item",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move { outcome(items::create(&self.client, item, key).await) };
        Box::pin(call.instrument(span))
    }

    fn find_items<'a>(
        &'a self,
        customer: &'a str,
        charge_id: Uuid,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<FoundItem>, Doubt>> {
        let span =
            tracing::info_span!("stripe.list_invoice_items", otel.kind = "client", server.address = "stripe");
        let call = async move {
            let found = items::find_all(&self.client, customer, &charge_id.to_string(), pace).await;
            found.map_err(|e| doubt(&e))
        };
        Box::pin(call.instrument(span))
    }

    fn has_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<bool, Doubt>> {
        let span = tracing::info_span!(
            "stripe.retrieve_invoice_item",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move { items::is_there(&self.client, item_id).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn delete_item<'a>(&'a self, item_id: &'a str) -> BoxFuture<'a, Result<(), Doubt>> {
        let span = tracing::info_span!(
            "stripe.delete_invoice_item",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move { items::delete(&self.client, item_id).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn places<'a>(
        &'a self,
        customer: &'a str,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<HashMap<String, Place>, Doubt>> {
        let span = tracing::info_span!("stripe.list_places", otel.kind = "client", server.address = "stripe");
        let call = async move {
            // The items first: the invoices that they are on are there by then.
            let items = items::on_invoices(&self.client, customer, pace).await?;
            pace.wait().await;
            let invoices = invoices::places(&self.client, customer, pace).await?;
            let place = |(item, invoice): (String, Option<String>)| match invoice {
                None => Some((item, Place::Pending)),
                Some(invoice) => Some((item, invoices.get(&invoice)?.clone())),
            };
            Ok::<_, RequestError>(items.into_iter().filter_map(place).collect())
        };
        Box::pin(call.map_err(|e| doubt(&e)).instrument(span))
    }

    fn create_invoice<'a>(&'a self, invoice: &'a NewInvoice, key: &'a str) -> BoxFuture<'a, Outcome> {
        let span =
            tracing::info_span!("stripe.create_invoice", otel.kind = "client", server.address = "stripe");
        let call = async move { outcome(invoices::create(&self.client, invoice, key).await) };
        Box::pin(call.instrument(span))
    }

    fn find_invoices<'a>(
        &'a self,
        customer: &'a str,
        settlement_id: Uuid,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<FoundInvoice>, Doubt>> {
        let span =
            tracing::info_span!("stripe.list_invoices", otel.kind = "client", server.address = "stripe");
        let call = async move {
            let found = invoices::find_all(&self.client, customer, &settlement_id.to_string(), pace).await;
            found.map_err(|e| doubt(&e))
        };
        Box::pin(call.instrument(span))
    }

    fn add_items<'a>(
        &'a self,
        invoice_id: &'a str,
        item_ids: &'a [String],
        key: &'a str,
    ) -> BoxFuture<'a, Outcome> {
        let span =
            tracing::info_span!("stripe.add_invoice_lines", otel.kind = "client", server.address = "stripe");
        let call = async move { outcome(invoices::add_items(&self.client, invoice_id, item_ids, key).await) };
        Box::pin(call.instrument(span))
    }

    fn finalize_invoice<'a>(&'a self, invoice_id: &'a str, key: &'a str) -> BoxFuture<'a, Outcome> {
        let span =
            tracing::info_span!("stripe.finalize_invoice", otel.kind = "client", server.address = "stripe");
        let call = async move { outcome(invoices::finalize(&self.client, invoice_id, key).await) };
        Box::pin(call.instrument(span))
    }
}

/// Whether Stripe says that there is no such object: one that a URL names, or a parameter.
fn is_missing(error: &RequestError) -> bool {
    matches!(error, RequestError::Answer(answer)
        if matches!(answer.status, 400 | 404) && answer.error.code.as_deref() == Some("resource_missing"))
}

/// A request is sent once, with the key: whether to send it again is the caller's decision.
fn once(key: &str) -> Result<RequestStrategy, RequestError> {
    let key = IdempotencyKey::new(key).map_err(|e| RequestError::Unsendable(e.to_string()))?;
    Ok(RequestStrategy::Idempotent(key))
}

fn parse_currency(code: &str) -> Result<stripe_types::Currency, RequestError> {
    code.to_lowercase().parse().map_err(|_| RequestError::Unsendable(format!("unknown currency {code}")))
}

/// One order of the metadata would be as good as another: Stripe compares parameters, not bytes.
fn unordered(metadata: &BTreeMap<String, String>) -> HashMap<String, String> {
    metadata.clone().into_iter().collect()
}

fn outcome(changed: Result<impl Into<Made>, RequestError>) -> Outcome {
    match changed.map(Into::into) {
        Ok(Made { id, replayed }) => Outcome::Succeeded { id, replayed },
        Err(RequestError::Answer(answer)) if is_final(&answer) => {
            tracing::warn!(
                request_id = answer.request_id,
                status = answer.status,
                code = answer.error.code,
                "Stripe refused a request"
            );
            Outcome::FailedForGood(refusal(&answer))
        }
        // It was done, and the same request would be answered the same.
        Err(error @ RequestError::Unreadable(_)) => {
            Outcome::Unknown(Doubt { advice: Advice::Look, ..doubt(&error) })
        }
        Err(error) => Outcome::Unknown(doubt(&error)),
    }
}

/// Whether Stripe has not done it and never will. Only Stripe's own error says so, and not that of a
/// proxy on the way. A refused key of ours (401, 403) says nothing about the account, a conflict of keys says
/// that something was made with this key, and a rate limit or an error of Stripe's own passes.
fn is_final(answer: &ErrorAnswer) -> bool {
    matches!(answer.status, 400 | 402 | 404)
        && answer.error.kind.as_deref().is_some_and(|kind| kind != "idempotency_error")
        && answer.should_retry != Some(true)
}

fn refusal(answer: &ErrorAnswer) -> Refusal {
    let error = &answer.error;
    let word = error.code.as_ref().or(error.kind.as_ref()).map_or("REFUSED", String::as_str);
    Refusal {
        reason: word.to_ascii_uppercase(),
        message: format!("Stripe refused it: {}", error.message.as_deref().unwrap_or("it did not say why")),
    }
}

fn doubt(error: &RequestError) -> Doubt {
    let (advice, retry_after) = match error {
        RequestError::Connection(_) | RequestError::Timeout | RequestError::Unreadable(_) => {
            (Advice::Again, None)
        }
        RequestError::TooLong | RequestError::Unsendable(_) => (Advice::Later, None),
        RequestError::Answer(answer) => (advice(answer), answer.retry_after),
    };
    let message = match error {
        RequestError::Connection(_) => "no answer from Stripe".to_owned(),
        RequestError::Timeout => "no answer from Stripe in time".to_owned(),
        RequestError::Unsendable(_) => "a request that cannot be sent".to_owned(),
        RequestError::Unreadable(_) => "an answer from Stripe that cannot be read".to_owned(),
        RequestError::TooLong => "the customer has too many to look through".to_owned(),
        RequestError::Answer(answer) => format!("Stripe answered {}", answer.status),
    };
    let request_id = match error {
        RequestError::Answer(answer) => answer.request_id.as_deref(),
        _ => None,
    };
    tracing::info!(%error, request_id, "Stripe left an outcome open");
    Doubt { advice, retry_after, message }
}

fn advice(answer: &ErrorAnswer) -> Advice {
    let same_again = answer.status >= 500 && answer.replayed;
    let other_parameters = answer.error.kind.as_deref() == Some("idempotency_error") && answer.status == 400;
    // A request that is wrong, or not allowed to us, stays so for now; a lock or a rate limit passes.
    let stays = matches!(answer.status, 400..=499) && !matches!(answer.status, 409 | 424 | 429);
    if same_again || other_parameters {
        Advice::Look
    } else if answer.should_retry.map_or(stays, |again| !again) {
        Advice::Later
    } else {
        Advice::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_read_is_that_of_something_done_which_is_looked_for() {
        let made = outcome(Err::<Made, _>(RequestError::Unreadable("of another kind".to_owned())));
        assert!(matches!(&made, Outcome::Unknown(doubt) if doubt.advice == Advice::Look), "{made:?}");
    }
}
