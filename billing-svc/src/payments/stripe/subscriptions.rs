//! [`Subscriptions`] at Stripe.

use std::{collections::HashMap, future::Future, ops::Range};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use stripe_billing::{invoice::RetrieveInvoice, subscription::RetrieveSubscription};
use stripe_checkout::checkout_session::{ListCheckoutSession, RetrieveCheckoutSession};
use stripe_core::customer::{RetrieveCustomer, RetrieveCustomerReturned};
use stripe_shared::{CheckoutSessionStatus, InvoiceBillingReason, InvoiceStatus};
use stripe_types::{Expandable, RangeBoundsTs, RangeQueryTs, Timestamp};
use tracing::Instrument;

use super::{Doubt, RequestError, Stripe, doubt, is_missing, listed, listing::look_through};
use crate::{
    domain::stripe_objects::{
        CheckoutSession, CheckoutState, Customer, ECO_ID, Invoice, Price, Subscription,
    },
    payments::{
        books::{Listing, Page},
        pace::Pace,
        subscriptions::Subscriptions,
    },
};

impl Subscriptions for Stripe {
    fn subscription<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Subscription>, Doubt>> {
        read("subscription", async move {
            subscription(RetrieveSubscription::new(id).send(&self.client).await?).map(Some)
        })
    }

    fn subscriptions<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<Subscription>, Doubt>> {
        let span =
            tracing::info_span!("stripe.list_subscriptions", otel.kind = "client", server.address = "stripe");
        let call = async move { listed::subscriptions(&self.client, listing).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn changes<'a>(&'a self, listing: &'a Listing) -> BoxFuture<'a, Result<Page<String>, Doubt>> {
        let span = tracing::info_span!("stripe.list_events", otel.kind = "client", server.address = "stripe");
        let call = async move { listed::changes(&self.client, listing).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn checkout_session<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<CheckoutSession>, Doubt>> {
        read("checkout_session", async move {
            Ok(Some(checkout_session(RetrieveCheckoutSession::new(id).send(&self.client).await?)))
        })
    }

    fn checkout_sessions<'a>(
        &'a self,
        customer: Option<&'a str>,
        opened: Range<DateTime<Utc>>,
        pace: &'a Pace,
    ) -> BoxFuture<'a, Result<Vec<CheckoutSession>, Doubt>> {
        let created = RangeBoundsTs {
            gte: Some(opened.start.timestamp()),
            lt: Some(opened.end.timestamp()),
            ..RangeBoundsTs::default()
        };
        let mut list = ListCheckoutSession::new().created(RangeQueryTs::Bounds(created));
        if let Some(customer) = customer {
            list = list.customer(customer);
        }
        let span = tracing::info_span!(
            "stripe.list_checkout_sessions",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move {
            let found = look_through(&self.client, list, pace, |_| true).await.map_err(|e| doubt(&e))?;
            Ok(found.into_iter().map(checkout_session).collect())
        };
        Box::pin(call.instrument(span))
    }

    fn invoice<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Invoice>, Doubt>> {
        read(
            "invoice",
            async move { invoice(id, RetrieveInvoice::new(id).send(&self.client).await?).map(Some) },
        )
    }

    fn customer<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Customer>, Doubt>> {
        read("customer", async move {
            Ok(match RetrieveCustomer::new(id).send(&self.client).await? {
                RetrieveCustomerReturned::Customer(customer) => {
                    let eco_id = customer.metadata.as_ref().and_then(named);
                    Some(Customer {
                        eco_id,
                        currency: customer.currency.map(|currency| currency.to_string()),
                    })
                }
                RetrieveCustomerReturned::DeletedCustomer(_) => None,
            })
        })
    }
}

/// Reads an object; what is missing at Stripe is none.
fn read<'a, T>(
    what: &'static str,
    call: impl Future<Output = Result<Option<T>, RequestError>> + Send + 'a,
) -> BoxFuture<'a, Result<Option<T>, Doubt>> {
    let span = tracing::info_span!(
        "stripe.retrieve",
        otel.name = format!("stripe.retrieve_{what}"),
        otel.kind = "client",
        server.address = "stripe"
    );
    let call = async move {
        match call.await {
            Ok(found) => Ok(found),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(doubt(&error)),
        }
    };
    Box::pin(call.instrument(span))
}

fn subscription(found: stripe_shared::Subscription) -> Result<Subscription, RequestError> {
    // Older API versions have no time where it is the period's end.
    let period_end = found.items.data.first().map(|item| item.current_period_end);
    let cancel_at = found.cancel_at.or(period_end.filter(|_| found.cancel_at_period_end));
    let prices = found.items.data.into_iter().map(|item| Price {
        id: item.price.id.to_string(),
        lookup_key: item.price.lookup_key,
        item_id: item.id.to_string(),
    });
    Ok(Subscription {
        status: found.status.as_str().parse().map_err(unreadable)?,
        prices: prices.collect(),
        anchor: time(found.billing_cycle_anchor)?,
        created: time(found.created)?,
        ended: found.ended_at.map(time).transpose()?,
        cancel_at: cancel_at.map(time).transpose()?,
        ends_by_date: found.cancel_at.is_some() && !found.cancel_at_period_end,
        eco_id: named(&found.metadata),
        customer: id(found.customer),
        id: found.id.to_string(),
    })
}

fn checkout_session(found: stripe_shared::CheckoutSession) -> CheckoutSession {
    let in_metadata = found.metadata.as_ref().and_then(named);
    CheckoutSession {
        id: found.id.to_string(),
        eco_id: found.client_reference_id.or(in_metadata),
        subscription: found.subscription.map(id),
        state: match found.status {
            Some(CheckoutSessionStatus::Open) => CheckoutState::Open,
            Some(CheckoutSessionStatus::Complete) => CheckoutState::Complete,
            _ => CheckoutState::Expired,
        },
        url: found.url,
    }
}

fn invoice(asked: &str, found: stripe_shared::Invoice) -> Result<Invoice, RequestError> {
    let parent = found.parent.and_then(|parent| parent.subscription_details);
    Ok(Invoice {
        id: asked.to_owned(),
        subscription: parent.map(|details| id(details.subscription)).or(found.subscription.map(id)),
        is_draft: found.status == Some(InvoiceStatus::Draft),
        goes_on: found.auto_advance.unwrap_or_default(),
        is_of_cycle: found.billing_reason == Some(InvoiceBillingReason::SubscriptionCycle),
        period_end: time(found.period_end)?,
    })
}

fn id<T: stripe_types::Object>(reference: Expandable<T>) -> String
where
    T::Id: ToString,
{
    reference.into_id().to_string()
}

fn named(metadata: &HashMap<String, String>) -> Option<String> {
    metadata.get(ECO_ID).cloned()
}

fn time(seconds: Timestamp) -> Result<DateTime<Utc>, RequestError> {
    DateTime::from_timestamp(seconds, 0).ok_or_else(|| unreadable("a time out of range"))
}

fn unreadable(what: impl ToString) -> RequestError {
    RequestError::Unreadable(what.to_string())
}
