//! Customers and subscriptions of the paying accounts, at the stand-in Stripe through its API.
//!
//! Every creation has an idempotency key of the account: when the first seeding was interrupted, the next
//! gets the objects that exist already.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use nexus_core::plan::Plan;
use reqwest::Client;
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::{super::stripe::Stripe, accounts::Account};

const AT_ONCE: usize = 8;

/// An account's ids at Stripe.
pub(super) struct AtStripe {
    pub(super) customer: String,
    pub(super) subscription: String,
}

#[derive(Deserialize)]
struct Created {
    id: String,
}

/// Creates what the paying accounts need; by account.
pub(super) async fn create(stripe: &Stripe, accounts: &[Account]) -> Result<HashMap<String, AtStripe>> {
    let api = Api { stripe, client: Client::new() };
    let pro = api.price("Pro", Plan::Pro, "4900").await?;
    let enterprise = api.price("Enterprise", Plan::Enterprise, "50000").await?;
    let paying = accounts.iter().filter_map(|account| match account.plan {
        Plan::Free => None,
        Plan::Pro => Some((account, &pro)),
        Plan::Enterprise => Some((account, &enterprise)),
    });
    stream::iter(paying.map(|(account, price)| api.account(account, price)))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

struct Api<'a> {
    stripe: &'a Stripe,
    client: Client,
}

impl Api<'_> {
    async fn price(&self, name: &str, plan: Plan, cents: &str) -> Result<String> {
        let product = self.post("products", &format!("product-{name}"), &[("name", name)]).await?;
        let price = [
            ("product", product.as_str()),
            ("lookup_key", plan.as_str()),
            ("currency", "usd"),
            ("unit_amount", cents),
            ("recurring[interval]", "month"),
        ];
        self.post("prices", &format!("price-{name}"), &price).await
    }

    async fn account(&self, account: &Account, price: &str) -> Result<(String, AtStripe)> {
        let eco_id = account.eco_id.as_str();
        let customer =
            [("name", account.name.as_str()), ("email", &account.email), ("metadata[eco_id]", eco_id)];
        let customer = self.post("customers", &format!("customer-{eco_id}"), &customer).await?;
        let anchor = account.period.end.timestamp().to_string();
        let subscription = [
            ("customer", customer.as_str()),
            ("items[0][price]", price),
            ("billing_cycle_anchor", &anchor),
            ("proration_behavior", "none"),
            ("metadata[eco_id]", eco_id),
        ];
        let subscription =
            self.post("subscriptions", &format!("subscription-{eco_id}"), &subscription).await?;
        Ok((account.eco_id.clone(), AtStripe { customer, subscription }))
    }

    async fn post(&self, what: &str, key: &str, form: &[(&str, &str)]) -> Result<String> {
        let response = self
            .client
            .post(format!("{}/v1/{what}", self.stripe.url))
            .bearer_auth(self.stripe.key.expose_secret())
            .header("Idempotency-Key", format!("nexus-demo-{key}"))
            .form(form)
            .send()
            .await
            .context("calling the stand-in Stripe")?;
        if !response.status().is_success() {
            bail!("the stand-in Stripe refused to create {what}: {}", response.text().await?);
        }
        Ok(response.json::<Created>().await.context("reading the stand-in Stripe's answer")?.id)
    }
}
