//! Addresses and credentials of a run, for programs.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::auth::{self, Scope};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::{
    DevArgs,
    database::Database,
    demo::{self, Demo},
    folder::{Secrets, write_private},
    ports::Addresses,
    servers::ISSUER,
    stripe::Stripe,
};

const TOKEN_DAYS: i64 = 30;
const ADMIN_EMAIL: &str = "admin@nexus.example";
const SERVICE_SCOPES: [Scope; 4] =
    [Scope::UsageWrite, Scope::UsageCheck, Scope::AccountsWrite, Scope::BillingRun];

/// What the file says.
#[derive(Serialize)]
pub(crate) struct Ready {
    /// REST.
    pub(crate) gateway_url: String,
    /// gRPC, `host:port`.
    pub(crate) usage_addr: String,
    /// gRPC, `host:port`.
    pub(crate) billing_addr: String,
    /// gRPC, `host:port`.
    pub(crate) analytics_addr: String,
    /// Prometheus, by server.
    pub(crate) metrics_urls: BTreeMap<&'static str, String>,
    /// PostgreSQL.
    pub(crate) database_url: String,
    /// Base of Stripe's API.
    pub(crate) stripe_url: String,
    /// Key of Stripe's API.
    pub(crate) stripe_secret_key: String,
    /// What the scheduler shows.
    pub(crate) cron_secret: String,
    /// Tokens.
    pub(crate) tokens: Tokens,
    /// API keys of the demo accounts.
    pub(crate) api_keys: ApiKeys,
}

/// A token and whose it is. Without demo data the accounts do not exist, but the tokens are good once an
/// account with that id is created.
#[derive(Serialize)]
pub(crate) struct Token {
    pub(crate) eco_id: String,
    pub(crate) token: String,
}

#[derive(Serialize)]
pub(crate) struct Tokens {
    /// Listed in ADMIN_ECO_IDS.
    pub(crate) admin: Token,
    /// A free account near its limit.
    pub(crate) free: Token,
    /// A pro account below its limit.
    pub(crate) pro: Token,
    /// An enterprise account.
    pub(crate) enterprise: Token,
    /// A program that may record, check, manage accounts and run billing; `eco_id` is its name.
    pub(crate) service: Token,
}

/// An API key and whose it is.
#[derive(Serialize)]
pub(crate) struct ApiKey {
    pub(crate) eco_id: String,
    pub(crate) key: String,
}

/// `null` without demo data.
#[derive(Serialize)]
pub(crate) struct ApiKeys {
    pub(crate) free: Option<ApiKey>,
    pub(crate) pro: Option<ApiKey>,
    pub(crate) enterprise: Option<ApiKey>,
}

impl Ready {
    /// Gathers addresses and makes tokens.
    pub(crate) fn new(
        args: &DevArgs,
        secrets: &Secrets,
        addresses: &Addresses,
        database: &Database,
        stripe: &Stripe,
        demo_data: Demo,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        let metrics = [
            ("gateway", addresses.gateway),
            ("usage", addresses.usage),
            ("billing", addresses.billing),
            ("analytics", addresses.analytics),
        ];
        Ok(Self {
            gateway_url: format!("http://{}", addresses.gateway.main),
            usage_addr: addresses.usage.main.to_string(),
            billing_addr: addresses.billing.main.to_string(),
            analytics_addr: addresses.analytics.main.to_string(),
            metrics_urls: metrics
                .into_iter()
                .map(|(name, a)| (name, format!("http://{}/metrics", a.operations)))
                .collect(),
            database_url: database.url().to_owned(),
            stripe_url: stripe.url.clone(),
            stripe_secret_key: stripe.key.expose_secret().to_owned(),
            cron_secret: secrets.cron.expose_secret().to_owned(),
            tokens: tokens(&args.admin()?, secrets, now + TimeDelta::days(TOKEN_DAYS))?,
            api_keys: demo_data.api_keys,
        })
    }
}

impl Ready {
    /// A token of a service that may do everything.
    pub(crate) fn service_token(&self) -> &str {
        &self.tokens.service.token
    }
}

fn tokens(admin: &EcoId, secrets: &Secrets, expires: DateTime<Utc>) -> Result<Tokens> {
    let user = |eco_id: &EcoId, email: &str| -> Result<Token> {
        let token = auth::user_token(&secrets.jwt, ISSUER, None, eco_id, Some(email), expires)?;
        Ok(Token { eco_id: eco_id.as_str().to_owned(), token })
    };
    let of_plan = |eco_id: &str, plan: Plan| user(&EcoId::parse(eco_id)?, &demo::email(plan));
    let name = "nexus-dev";
    Ok(Tokens {
        admin: user(admin, ADMIN_EMAIL)?,
        free: of_plan(demo::FREE, Plan::Free)?,
        pro: of_plan(demo::PRO, Plan::Pro)?,
        enterprise: of_plan(demo::ENTERPRISE, Plan::Enterprise)?,
        service: Token {
            eco_id: name.to_owned(),
            token: auth::service_token(&secrets.service_token, name, &SERVICE_SCOPES, expires)?,
        },
    })
}

/// The file of a run. It is there only while everything is ready: one that an earlier run left is removed
/// at the start, and this run's goes when this value is dropped.
pub(crate) struct ReadyFile(PathBuf);

impl ReadyFile {
    /// Removes what an earlier run left.
    pub(crate) fn claim(path: &Path) -> Result<Self> {
        let file = Self(path.to_owned());
        file.remove().with_context(|| format!("--ready-file {}", path.display()))?;
        Ok(file)
    }

    /// Writes it, whole and for its owner only.
    pub(crate) fn write(&self, ready: &Ready) -> Result<()> {
        let mut text = serde_json::to_string_pretty(ready)?;
        text.push('\n');
        write_private(&self.0, text.as_bytes()).context("--ready-file")
    }

    fn remove(&self) -> std::io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("nexus: the ready file {} stays behind: {error}", self.0.display());
        }
    }
}
