//! `nexus token`: tokens as an identity provider would issue them, and service tokens.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use clap::Subcommand;
use nexus_core::id::EcoId;
use nexus_kit::{
    auth::{self, Scope},
    config::parse_duration,
};
use secrecy::SecretString;

pub(crate) const HELP: &str = "\
Examples:
  nexus token user --eco-id eco_demo_pro --ttl 1h
  nexus token service --scopes usage.write,usage.check --name importer
Only the token is printed. The secrets are those of the servers: JWT_SECRET, SERVICE_TOKEN_SECRET.";

/// Whose token.
#[derive(Subcommand)]
pub(crate) enum Whose {
    /// A user's: sees the own account; an admin's where ADMIN_ECO_IDS of the servers lists the account
    User {
        /// Account
        #[arg(long, value_parser = eco_id, value_name = "ID")]
        eco_id: EcoId,
        /// Email in the token
        #[arg(long)]
        email: Option<String>,
        /// How long it is good for
        #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
        ttl: Duration,
        /// Secret of users' tokens
        #[arg(long, env = "JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
        jwt_secret: SecretString,
        /// Issuer in the token
        #[arg(long, env = "JWT_ISSUER", default_value = "nexus", value_name = "ISS")]
        jwt_issuer: String,
        /// Audience in the token
        #[arg(long, env = "JWT_AUDIENCE", value_name = "AUD")]
        jwt_audience: Option<String>,
    },
    /// A service's
    Service {
        /// What it may do: usage.write, usage.check, accounts.write, billing.run, admin
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        /// Name in logs
        #[arg(long, default_value = "cli")]
        name: String,
        /// How long it is good for
        #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
        ttl: Duration,
        /// Secret of service tokens
        #[arg(long, env = "SERVICE_TOKEN_SECRET", hide_env_values = true, value_name = "SECRET")]
        service_token_secret: SecretString,
    },
}

fn eco_id(text: &str) -> Result<EcoId, String> {
    EcoId::parse(text).map_err(|e| e.to_string())
}

/// Prints the token alone.
pub(crate) fn print(whose: &Whose) -> Result<ExitCode> {
    let token = match whose {
        Whose::User { eco_id, email, ttl, jwt_secret, jwt_issuer, jwt_audience } => {
            auth::check_secret("JWT_SECRET (--jwt-secret)", jwt_secret)?;
            let audience = jwt_audience.as_deref().filter(|audience| !audience.is_empty());
            auth::user_token(jwt_secret, jwt_issuer, audience, eco_id, email.as_deref(), expiry(*ttl)?)
        }
        Whose::Service { scopes, name, ttl, service_token_secret } => {
            auth::check_secret("SERVICE_TOKEN_SECRET (--service-token-secret)", service_token_secret)?;
            auth::service_token(service_token_secret, name, scopes, expiry(*ttl)?)
        }
    };
    println!("{}", token.context("signing the token")?);
    Ok(ExitCode::SUCCESS)
}

fn expiry(ttl: Duration) -> Result<chrono::DateTime<Utc>> {
    ensure!(!ttl.is_zero(), "--ttl must be longer than 0");
    let too_long = "--ttl is longer than time goes";
    let ttl = chrono::TimeDelta::from_std(ttl).context(too_long)?;
    Utc::now().checked_add_signed(ttl).context(too_long)
}
