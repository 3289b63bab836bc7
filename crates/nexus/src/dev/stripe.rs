//! The stand-in Stripe, or the account that STRIPE_SECRET_KEY opens.

use std::env;

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;

use super::{
    DevArgs,
    folder::Folder,
    ports::Addresses,
    servers::{Servers, Settings},
};

const REAL: &str = "https://api.stripe.com";
/// What billing-svc wants to hear of.
const WEBHOOK_EVENTS: [&str; 6] = [
    "checkout.session.completed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.created",
    "invoice.payment_*",
];

/// Where billing finds Stripe.
pub(crate) struct Stripe {
    /// Base of the API's URLs.
    pub(crate) url: String,
    /// The key.
    pub(crate) key: SecretString,
    /// Under which the stand-in signs its webhooks; `None`: it is not the stand-in.
    webhook_secret: Option<SecretString>,
}

impl Stripe {
    /// Starts the stand-in, unless a key of the real one was given.
    pub(crate) fn start(
        args: &DevArgs,
        folder: &Folder,
        servers: &mut Servers,
        listener: TcpListener,
        addresses: &Addresses,
    ) -> Result<Self> {
        if let Some(key) = args.stripe_secret_key() {
            let url = env::var("STRIPE_API_BASE").ok().filter(|url| !url.is_empty());
            return Ok(Self {
                url: url.unwrap_or_else(|| REAL.to_owned()),
                key: key.clone(),
                webhook_secret: None,
            });
        }
        let url = format!("http://{}", listener.local_addr()?);
        let key = folder.secrets().stripe_key.clone();
        let accepted = key.expose_secret().parse().context("the stand-in Stripe's key")?;
        let webhook_secret = folder.secrets().stripe_webhook.clone();
        let config = stripe_sim::Config {
            secret_key: Some(accepted),
            data: folder.stripe_journal(),
            webhook_url: Some(format!("http://{}/webhooks/stripe", addresses.gateway.main)),
            webhook_secret: Some(webhook_secret.expose_secret().into()),
            webhook_events: WEBHOOK_EVENTS.map(str::to_owned).to_vec(),
        };
        servers.start_stripe(config, listener);
        Ok(Self { url, key, webhook_secret: Some(webhook_secret) })
    }

    /// Whether it is the stand-in.
    pub(crate) fn embedded(&self) -> bool {
        self.webhook_secret.is_some()
    }

    /// Adds billing-svc's settings.
    pub(crate) fn settings(&self, settings: Settings) -> Settings {
        let settings =
            settings.set("stripe-secret-key", self.key.expose_secret()).set("stripe-api-base", &self.url);
        match &self.webhook_secret {
            Some(secret) => settings.set("stripe-webhook-secret", secret.expose_secret()),
            None => settings,
        }
    }
}
