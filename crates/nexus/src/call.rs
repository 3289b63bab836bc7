//! Addresses, credentials and errors of the commands that call a service.

use std::{error::Error, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::Args;
use nexus_client::{self as client, CallOptions, ClientError};
use nexus_kit::config::parse_timeout;
use nexus_proto::{
    analytics::v1::analytics_service_client::AnalyticsServiceClient,
    billing::v1::billing_service_client::BillingServiceClient,
    usage::v1::usage_service_client::UsageServiceClient,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::text::harmless;

/// What every call carries.
#[derive(Args)]
pub(crate) struct Credentials {
    /// Token to call with (`nexus token`; `nexus dev` prints some)
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
            "no token to call with: set NEXUS_TOKEN (--token) to one of `nexus token`, or to one that `nexus dev` prints",
        )?;
        Ok(CallOptions::bearer(token, self.call_timeout)?)
    }

    /// The account of the user whose token it is, as that says: nobody has checked it here.
    fn own_account(&self) -> Option<String> {
        let payload = self.token.as_ref()?.expose_secret().split('.').nth(1)?;
        let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        Some(claims.get("ecoId")?.as_str()?.to_owned())
    }
}

/// Whom a command is about.
#[derive(Args)]
pub(crate) struct Account {
    /// Account; default: that of the user whose token it is
    #[arg(long, value_name = "ID")]
    account: Option<String>,
}

impl Account {
    /// As requests name it; empty: the caller's own.
    pub(crate) fn id(&self) -> String {
        self.account.clone().unwrap_or_default()
    }

    /// What failed, and of which account, where none was named and there is none: an admin needs no account.
    pub(crate) fn if_missing(&self, failed: String, credentials: &Credentials, status: &Status) -> String {
        let details = status.get_error_details();
        let missing = details.error_info().is_some_and(|info| info.reason == "ACCOUNT_NOT_FOUND");
        match credentials.own_account().filter(|_| missing && self.account.is_none()) {
            Some(own) => format!(
                "{failed}\nNo --account was given, so it is the token's own, {}. An admin names another: --account ID \
                 (`nexus accounts list` lists them)",
                harmless(&own)
            ),
            None => failed,
        }
    }
}

/// usage-svc, and who calls it.
#[derive(Args)]
pub(crate) struct Usage {
    /// usage-svc
    #[arg(long, env = "USAGE_ADDR", default_value = "localhost:50051", value_parser = address, value_name = "ADDR")]
    usage_addr: String,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
}

impl Usage {
    pub(crate) fn client(&self) -> Result<UsageServiceClient<Channel>> {
        Ok(client::usage(self.credentials.channel(&self.usage_addr)?))
    }

    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>> {
        Ok(self.credentials.options()?.request(message))
    }

    /// A refused call in words.
    pub(crate) fn refused(&self, rpc: &str, status: &Status) -> String {
        refused(rpc, &self.usage_addr, "usage-svc (--usage-addr, USAGE_ADDR)", status)
    }
}

/// billing-svc, and who calls it.
#[derive(Args)]
pub(crate) struct Billing {
    /// billing-svc
    #[arg(long, env = "BILLING_ADDR", default_value = "localhost:50052", value_parser = address, value_name = "ADDR")]
    billing_addr: String,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
}

impl Billing {
    pub(crate) fn client(&self) -> Result<BillingServiceClient<Channel>> {
        Ok(client::billing(self.credentials.channel(&self.billing_addr)?))
    }

    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>> {
        Ok(self.credentials.options()?.request(message))
    }

    /// A refused call in words.
    pub(crate) fn refused(&self, rpc: &str, status: &Status) -> String {
        refused(rpc, &self.billing_addr, "billing-svc (--billing-addr, BILLING_ADDR)", status)
    }
}

/// Where analytics-svc is.
#[derive(Args)]
pub(crate) struct AnalyticsAddr {
    /// analytics-svc
    #[arg(long, env = "ANALYTICS_ADDR", default_value = "localhost:50053", value_parser = address, value_name = "ADDR")]
    analytics_addr: String,
}

impl AnalyticsAddr {
    pub(crate) fn client(&self, credentials: &Credentials) -> Result<AnalyticsServiceClient<Channel>> {
        Ok(client::analytics(credentials.channel(&self.analytics_addr)?))
    }

    /// A refused call in words.
    pub(crate) fn refused(&self, rpc: &str, status: &Status) -> String {
        refused(rpc, &self.analytics_addr, "analytics-svc (--analytics-addr, ANALYTICS_ADDR)", status)
    }
}

/// analytics-svc, and who calls it.
#[derive(Args)]
pub(crate) struct Analytics {
    #[command(flatten)]
    server: AnalyticsAddr,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
}

impl Analytics {
    pub(crate) fn client(&self) -> Result<AnalyticsServiceClient<Channel>> {
        self.server.client(&self.credentials)
    }

    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>> {
        Ok(self.credentials.options()?.request(message))
    }

    /// A refused call in words.
    pub(crate) fn refused(&self, rpc: &str, status: &Status) -> String {
        self.server.refused(rpc, status)
    }
}

/// What makes a command that changes something safe to repeat.
#[derive(Args)]
pub(crate) struct Once {
    /// Names this very change: a repeat with the same UUID changes nothing more, and tells what the first one did
    /// [default: a new one]
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
}

impl Once {
    pub(crate) fn id(&self) -> Uuid {
        self.request_id.unwrap_or_else(Uuid::new_v4)
    }
}

/// What is to be said of a change that went wrong: where no answer came it may have been made.
pub(crate) fn in_doubt(failed: String, id: Uuid, status: &Status) -> String {
    if client::is_transient(status) {
        format!(
            "{failed}\nWhether it was done is not known; the same with --request-id {id} does it once, if at all"
        )
    } else {
        failed
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

/// A refused call in words, and the flag that mends it.
fn refused(rpc: &str, address: &str, server: &str, status: &Status) -> String {
    let told = format!("{rpc} at {address}: {}", explain(status));
    if client::is_made_here(status) {
        // The innermost cause says most: `Connection refused`.
        let mut cause = status.source();
        while let Some(inner) = cause.and_then(Error::source) {
            cause = Some(inner);
        }
        let cause = cause.map(ToString::to_string).filter(|cause| !told.contains(cause));
        let cause = cause.map(|cause| format!(": {cause}"));
        return format!("{told}{}\nIs {server} there?", cause.unwrap_or_default());
    }
    match status.code() {
        Code::Unauthenticated => format!("{told}\nThe token is that of --token (NEXUS_TOKEN)"),
        _ => told,
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
}
