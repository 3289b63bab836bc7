//! What can be set from outside.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Settings of the stand-in Stripe, as command-line flags or environment variables.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Config {
    /// Accept only this secret key (default: any that begins with `sk_test_`)
    #[arg(long, env = "STRIPE_SIM_SECRET_KEY", hide_env_values = true)]
    pub secret_key: Option<SecretKey>,

    /// Keep the state in this append-only JSON-lines file (default: in memory only)
    #[arg(long, env = "STRIPE_SIM_DATA", value_name = "FILE")]
    pub data: Option<PathBuf>,
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
