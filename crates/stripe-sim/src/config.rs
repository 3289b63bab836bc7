//! What can be set from outside.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::objects::webhooks::check_url;

/// Settings of the stand-in Stripe, as command-line flags or environment variables.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Config {
    /// Accept only this secret key (default: any that begins with `sk_test_`)
    #[arg(long, env = "STRIPE_SIM_SECRET_KEY", hide_env_values = true)]
    pub secret_key: Option<SecretKey>,

    /// Keep the state in this append-only JSON-lines file (default: in memory only)
    #[arg(long, env = "STRIPE_SIM_DATA", value_name = "FILE")]
    pub data: Option<PathBuf>,

    /// Send webhooks to this `http://` URL (default: to none, until an endpoint is made)
    #[arg(long, env = "STRIPE_SIM_WEBHOOK_URL", value_name = "URL", requires = "webhook_secret",
          value_parser = webhook_url)]
    pub webhook_url: Option<String>,

    /// Sign the webhooks to that URL with this secret; while it is empty, none are sent there
    #[arg(long, env = "STRIPE_SIM_WEBHOOK_SECRET", hide_env_values = true)]
    pub webhook_secret: Option<WebhookSecret>,

    /// Types of the events that go there, such as `invoice.*` (default: all)
    #[arg(long, env = "STRIPE_SIM_WEBHOOK_EVENTS", value_name = "TYPES", value_delimiter = ',')]
    pub webhook_events: Vec<String>,
}

fn webhook_url(url: &str) -> Result<String, String> {
    check_url(url)?;
    Ok(url.to_owned())
}

/// What an endpoint's webhooks are signed with; of several, separated by commas, the first. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(String);

impl WebhookSecret {
    /// The first, if there are several; `None`, when it is empty.
    pub(crate) fn expose(&self) -> Option<&str> {
        self.0.split(',').next().filter(|secret| !secret.is_empty())
    }
}

impl From<&str> for WebhookSecret {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

/// A test-mode secret key. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(String);

/// Why a string is not a [`SecretKey`].
#[derive(Debug, thiserror::Error)]
#[error("a secret key of the stand-in Stripe begins with `sk_test_` and goes on with at least one character")]
pub struct SecretKeyError;

impl SecretKey {
    pub(crate) const PREFIX: &str = "sk_test_";

    pub(crate) fn matches(&self, given: &str) -> bool {
        self.0 == given
    }
}

impl FromStr for SecretKey {
    type Err = SecretKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(Self::PREFIX) {
            Some(rest) if !rest.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(SecretKeyError),
        }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(sk_test_…)")
    }
}
