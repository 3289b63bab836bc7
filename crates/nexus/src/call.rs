//! Addresses, credentials and errors of the commands that call a service.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use nexus_client::{CallOptions, ClientError};
use nexus_core::money::{Currency, MICROS};
pub(crate) use nexus_core::text::thousands;
use nexus_kit::config::parse_timeout;
use secrecy::{ExposeSecret, SecretString};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt;

/// What every call carries.
#[derive(Args)]
pub(crate) struct Credentials {
    /// Token to call with (`nexus token service`; `nexus dev` prints one)
    #[arg(long, env = "NEXUS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<SecretString>,
    /// Longest time one call may take
    #[arg(long, env = "CALL_TIMEOUT", default_value = "60s", value_parser = parse_timeout, value_name = "DURATION")]
    call_timeout: Duration,
    /// Certificates (PEM) to trust where the server serves TLS (https:// addresses)
    #[arg(long, env = "TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

impl Credentials {
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, ClientError> {
        nexus_client::trusting_channel(address, self.tls_ca.as_deref())
    }

    pub(crate) fn options(&self) -> Result<CallOptions> {
        // An empty variable counts as unset.
        let token = self.token.as_ref().map(ExposeSecret::expose_secret).filter(|token| !token.is_empty());
        let token = token.context(
            "no token to call with: set NEXUS_TOKEN (--token) to one of `nexus token service`, or to the service token that `nexus dev` prints",
        )?;
        Ok(CallOptions::bearer(token, self.call_timeout)?)
    }
}

/// Reads the address of a server: a URL, or `host:port` for one without TLS.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: tonic::transport::Uri =
        url.parse().map_err(|_| format!("`{text}` is not an address such as localhost:50051"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(url),
        _ => Err(format!("`{text}` is not an address such as localhost:50051 or https://usage.example:443")),
    }
}

/// A refused call in words: code, reason, message, and every field at fault.
pub(crate) fn explain(status: &Status) -> String {
    let details = status.get_error_details();
    let reason = details.error_info().map(|i| format!(" ({})", i.reason)).unwrap_or_default();
    let mut text = format!("{:?}{reason}: {}", status.code(), status.message());
    for violation in details.bad_request().map(|b| b.field_violations.as_slice()).unwrap_or_default() {
        text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
    }
    text
}

/// An amount of micros, with two decimals and thousands separators: `$4,705.00`, `12.50 EUR`. What is
/// less than a hundredth is cut off.
pub(crate) fn money(micros: i64, currency_code: &str) -> String {
    let hundredths = micros.unsigned_abs() / (MICROS.unsigned_abs() / 100);
    let sign = if micros < 0 { "-" } else { "" };
    let amount = format!("{}.{:02}", thousands(hundredths / 100), hundredths % 100);
    if currency_code == Currency::USD.as_str() {
        format!("{sign}${amount}")
    } else {
        format!("{sign}{amount} {currency_code}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_scheme() {
        assert_eq!(address("localhost:50051").as_deref(), Ok("http://localhost:50051"));
        assert_eq!(address("https://usage.example").as_deref(), Ok("https://usage.example"));
        assert!(address("ftp://usage.example").is_err());
        assert!(address("not an address").is_err());
    }

    #[test]
    fn amounts_as_people_read_them() {
        assert_eq!(money(4_705_000_000, "USD"), "$4,705.00");
        assert_eq!(money(-12_509_999, "EUR"), "-12.50 EUR");
    }
}
