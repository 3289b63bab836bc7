//! More that is made and read at the stand-in Stripe.

use anyhow::{Context, Result};
use hyper::Method;
use serde_json::Value;

use crate::support::{FORM, Sim};

impl Sim {
    /// A monthly price of 49 dollars, which leads to a plan by its lookup key.
    pub(crate) async fn price(&self, lookup_key: &str) -> Result<String> {
        let price = format!(
            "currency=usd&unit_amount=4900&recurring[interval]=month&product_data[name]=X&lookup_key={lookup_key}"
        );
        self.create("prices", &price).await
    }

    pub(crate) async fn cancel(&self, subscription: &str) -> Result<()> {
        self.call(Method::DELETE, &format!("/v1/subscriptions/{subscription}"), FORM, String::new()).await?;
        Ok(())
    }

    /// An object of Stripe's.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, &format!("/v1/{path}"), FORM, String::new()).await
    }

    /// The invoices that were made by request, oldest first.
    pub(crate) async fn made_invoices(&self) -> Result<Vec<Value>> {
        let state = self.read("/state").await?;
        let all = state["invoices"].as_array().context("invoices")?;
        Ok(all.iter().filter(|invoice| invoice["billing_reason"] == "manual").cloned().collect())
    }
}
