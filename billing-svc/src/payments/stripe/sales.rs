//! [`Sales`] at Stripe.

use std::collections::HashMap;

use futures::future::BoxFuture;
use serde::Serialize;
use stripe_billing::subscription::{
    CancelSubscription, UpdateSubscription, UpdateSubscriptionItems, UpdateSubscriptionProrationBehavior,
};
use stripe_checkout::checkout_session::{
    CreateCheckoutSession, CreateCheckoutSessionLineItems, CreateCheckoutSessionSubscriptionData,
    ExpireCheckoutSession,
};
use stripe_client_core::{RequestBuilder, StripeMethod, StripeRequest};
use stripe_core::customer::CreateCustomer;
use stripe_shared::{CheckoutSessionMode, Price, Subscription};
use stripe_types::List;
use tracing::Instrument;

use super::{Doubt, Outcome, RequestError, Stripe, doubt, is_missing, once, outcome};
use crate::{
    config::Proration,
    domain::{
        account::check_stripe_id,
        stripe_change::{NewCheckout, SubscriptionChange},
        stripe_customer::NewCustomer,
        stripe_objects::ECO_ID,
    },
    payments::sales::Sales,
};

/// Lookup keys that Stripe takes in one request.
const MOST_LOOKUP_KEYS: usize = 10;

/// A page of the prices with these lookup keys.
#[derive(Serialize)]
struct ListPrices<'a> {
    active: bool,
    lookup_keys: &'a [String],
    limit: i64,
}

impl StripeRequest for ListPrices<'_> {
    type Output = List<Price>;

    fn build(&self) -> RequestBuilder {
        RequestBuilder::new(StripeMethod::Get, "/prices").query(self)
    }
}

/// A price by its id.
struct RetrievePrice<'a>(&'a str);

impl StripeRequest for RetrievePrice<'_> {
    type Output = Price;

    fn build(&self) -> RequestBuilder {
        RequestBuilder::new(StripeMethod::Get, format!("/prices/{}", self.0))
    }
}

/// A change that takes away the date by which a subscription was to end. It is no parameter that async-stripe has, and Stripe
/// takes it only without `cancel_at_period_end`.
struct WithoutDate(UpdateSubscription);

impl StripeRequest for WithoutDate {
    type Output = Subscription;

    fn build(&self) -> RequestBuilder {
        let mut request = self.0.build();
        let mut form = request.body.take().filter(|form| !form.is_empty()).unwrap_or_default();
        if !form.is_empty() {
            form.push('&');
        }
        form.push_str("cancel_at=");
        request.body = Some(form);
        request
    }
}

/// Whether a price can be sold in a currency.
fn fits(price: &Price, currency: &str) -> bool {
    price.active && price.currency.to_string().eq_ignore_ascii_case(currency)
}

impl Sales for Stripe {
    fn price<'a>(
        &'a self,
        names: &'a [String],
        currency: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Doubt>> {
        let span = tracing::info_span!("stripe.list_prices", otel.kind = "client", server.address = "stripe");
        let call = async move { self.price_of(names, currency).await.map_err(|e| doubt(&e)) };
        Box::pin(call.instrument(span))
    }

    fn create_customer<'a>(&'a self, customer: &'a NewCustomer, key: &'a str) -> BoxFuture<'a, Outcome> {
        let span =
            tracing::info_span!("stripe.create_customer", otel.kind = "client", server.address = "stripe");
        let call = async move { outcome(self.make_customer(customer, key).await) };
        Box::pin(call.instrument(span))
    }

    fn open_checkout<'a>(&'a self, checkout: &'a NewCheckout, key: &'a str) -> BoxFuture<'a, Outcome> {
        let span = tracing::info_span!(
            "stripe.create_checkout_session",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move { outcome(self.create_checkout(checkout, key).await) };
        Box::pin(call.instrument(span))
    }

    fn end_checkout<'a>(&'a self, session_id: &'a str, key: &'a str) -> BoxFuture<'a, Outcome> {
        let span = tracing::info_span!(
            "stripe.expire_checkout_session",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move { outcome(self.expire_checkout(session_id, key).await) };
        Box::pin(call.instrument(span))
    }

    fn change_subscription<'a>(
        &'a self,
        id: &'a str,
        change: &'a SubscriptionChange,
        key: &'a str,
    ) -> BoxFuture<'a, Outcome> {
        let span = tracing::info_span!(
            "stripe.change_subscription",
            otel.kind = "client",
            server.address = "stripe"
        );
        let call = async move { outcome(self.change(id, change, key).await) };
        Box::pin(call.instrument(span))
    }
}

impl Stripe {
    async fn price_of(&self, names: &[String], currency: &str) -> Result<Option<String>, RequestError> {
        for some in names.chunks(MOST_LOOKUP_KEYS) {
            let request = ListPrices { active: true, lookup_keys: some, limit: 100 };
            let found = request.customize().send(&self.client).await?.data;
            for name in some {
                let named = found
                    .iter()
                    .find(|price| price.lookup_key.as_ref() == Some(name) && fits(price, currency));
                if let Some(price) = named {
                    return Ok(Some(price.id.to_string()));
                }
            }
        }
        for name in names.iter().filter(|name| check_stripe_id(name).is_ok()) {
            match RetrievePrice(name).customize().send(&self.client).await {
                Ok(price) if fits(&price, currency) => return Ok(Some(price.id.to_string())),
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn make_customer(&self, customer: &NewCustomer, key: &str) -> Result<String, RequestError> {
        let named = HashMap::from([(ECO_ID.to_owned(), customer.eco_id.to_string())]);
        let mut request = CreateCustomer::new().metadata(named);
        if let Some(email) = &customer.email {
            request = request.email(email);
        }
        Ok(request.customize().request_strategy(once(key)?).send(&self.client).await?.id.to_string())
    }

    async fn create_checkout(&self, checkout: &NewCheckout, key: &str) -> Result<String, RequestError> {
        let named = HashMap::from([(ECO_ID.to_owned(), checkout.eco_id.clone())]);
        let item = CreateCheckoutSessionLineItems {
            price: Some(checkout.price_id.clone()),
            quantity: Some(1),
            ..CreateCheckoutSessionLineItems::new()
        };
        let subscription = CreateCheckoutSessionSubscriptionData {
            metadata: Some(named.clone()),
            ..CreateCheckoutSessionSubscriptionData::new()
        };
        let mut request = CreateCheckoutSession::new()
            .mode(CheckoutSessionMode::Subscription)
            .line_items(vec![item])
            .client_reference_id(&checkout.eco_id)
            .metadata(named)
            .subscription_data(subscription)
            .success_url(&checkout.success_url)
            .cancel_url(&checkout.cancel_url)
            .expires_at(checkout.expires.timestamp());
        match (&checkout.customer, &checkout.email) {
            (Some(customer), _) => request = request.customer(customer),
            (None, Some(email)) => request = request.customer_email(email),
            (None, None) => {}
        }
        Ok(request.customize().request_strategy(once(key)?).send(&self.client).await?.id.to_string())
    }

    async fn expire_checkout(&self, session_id: &str, key: &str) -> Result<String, RequestError> {
        let request = ExpireCheckoutSession::new(session_id).customize().request_strategy(once(key)?);
        Ok(request.send(&self.client).await?.id.to_string())
    }

    async fn change(&self, id: &str, change: &SubscriptionChange, key: &str) -> Result<String, RequestError> {
        let update = UpdateSubscription::new(id);
        let update = match change {
            SubscriptionChange::Price { item_id, price_id, is_prorated, by_date, .. } => {
                let item = UpdateSubscriptionItems {
                    id: Some(item_id.clone()),
                    price: Some(price_id.clone()),
                    ..UpdateSubscriptionItems::new()
                };
                let proration = if *is_prorated { self.proration } else { Proration::None };
                let proration = match proration {
                    Proration::CreateProrations => UpdateSubscriptionProrationBehavior::CreateProrations,
                    Proration::AlwaysInvoice => UpdateSubscriptionProrationBehavior::AlwaysInvoice,
                    Proration::None => UpdateSubscriptionProrationBehavior::None,
                };
                let update = update.items(vec![item]).proration_behavior(proration);
                return self.go_on(update, *by_date, key).await;
            }
            SubscriptionChange::GoOn { by_date } => return self.go_on(update, *by_date, key).await,
            SubscriptionChange::EndWithPeriod => update.cancel_at_period_end(true),
            SubscriptionChange::EndNow => {
                // One that is over is ended.
                return match CancelSubscription::new(id).send(&self.client).await {
                    Ok(_) => Ok(id.to_owned()),
                    Err(error) if is_missing(&error) => Ok(id.to_owned()),
                    Err(error) => Err(error),
                };
            }
        };
        let changed = update.customize().request_strategy(once(key)?).send(&self.client).await?;
        Ok(changed.id.to_string())
    }

    /// Has a subscription go on with a change, if it was to end.
    async fn go_on(
        &self,
        update: UpdateSubscription,
        by_date: bool,
        key: &str,
    ) -> Result<String, RequestError> {
        let request = if by_date {
            WithoutDate(update).customize()
        } else {
            update.cancel_at_period_end(false).customize()
        };
        Ok(request.request_strategy(once(key)?).send(&self.client).await?.id.to_string())
    }
}
