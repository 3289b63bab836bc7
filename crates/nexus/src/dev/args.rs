//! Flags of `nexus dev`.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use nexus_core::id::EcoId;
use secrecy::{ExposeSecret, SecretString};

pub(crate) const HELP: &str = "\
Examples:
  nexus dev                                      data in ./.nexus, kept between runs
  nexus dev --ephemeral --ready-file ready.json  throw-away data, free ports; where and with what is in the file
  nexus dev --empty --data-dir /tmp/mine         no demo data

All ports are on loopback. The secrets of this installation are made once and kept in the data folder, so
that tokens and API keys survive restarts.

With DATABASE_URL set, nothing is started or made there: its schema is brought to this version, and demo
data is never put into it. With STRIPE_SECRET_KEY set (a test key), billing talks to Stripe itself, or to
STRIPE_API_BASE; there is no demo data either.

Ctrl-C drains the servers and stops PostgreSQL; a second Ctrl-C cuts off calls in flight.";

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Folder of the database, the stand-in Stripe's data and the secrets
    #[arg(long, default_value = ".nexus", value_name = "FOLDER")]
    pub(crate) data_dir: PathBuf,
    /// Keep nothing: a temporary database that goes when this ends, and free ports unless they are given
    #[arg(long, conflicts_with = "data_dir")]
    pub(crate) ephemeral: bool,
    /// No demo data
    #[arg(long)]
    pub(crate) empty: bool,
    /// When everything is ready, write addresses and credentials to this file (JSON, mode 0600); it is
    /// removed when this ends
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Accounts whose users are admins, comma separated; the token printed is the first one's
    #[arg(long, env = "ADMIN_ECO_IDS", default_value = "eco_demo_admin", value_name = "IDS")]
    pub(crate) admin_eco_ids: String,
    /// Serve reflection without credentials
    #[arg(long, env = "OPEN_REFLECTION", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) open_reflection: bool,
    /// Serve health without credentials
    #[arg(long, env = "OPEN_HEALTH", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) open_health: bool,
    /// Use this PostgreSQL instead of a private one; implies --empty
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,
    /// Use this Stripe account (a test key) instead of the stand-in; implies --empty
    #[arg(long, env = "STRIPE_SECRET_KEY", hide_env_values = true, value_name = "KEY")]
    stripe_secret_key: Option<SecretString>,
    #[command(flatten)]
    pub(crate) ports: PortArgs,
}

/// Ports on loopback; 0: a free one. Unset, they are the usual ones, or free ones with `--ephemeral`.
#[derive(Args, Debug, Default)]
pub(crate) struct PortArgs {
    /// Gateway, HTTP [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(crate) http_port: Option<u16>,
    /// usage-svc, gRPC [default: 50051]
    #[arg(long, value_name = "PORT")]
    pub(crate) usage_port: Option<u16>,
    /// billing-svc, gRPC [default: 50052]
    #[arg(long, value_name = "PORT")]
    pub(crate) billing_port: Option<u16>,
    /// analytics-svc, gRPC [default: 50053]
    #[arg(long, value_name = "PORT")]
    pub(crate) analytics_port: Option<u16>,
    /// The stand-in Stripe [default: 12111]
    #[arg(long, value_name = "PORT")]
    pub(crate) stripe_port: Option<u16>,
    /// Metrics of the gateway [default: 9150]
    #[arg(long, value_name = "PORT")]
    pub(crate) http_metrics_port: Option<u16>,
    /// Metrics of usage-svc [default: 9151]
    #[arg(long, value_name = "PORT")]
    pub(crate) usage_metrics_port: Option<u16>,
    /// Metrics of billing-svc [default: 9152]
    #[arg(long, value_name = "PORT")]
    pub(crate) billing_metrics_port: Option<u16>,
    /// Metrics of analytics-svc [default: 9153]
    #[arg(long, value_name = "PORT")]
    pub(crate) analytics_metrics_port: Option<u16>,
}

impl DevArgs {
    /// Refuses what must not run here.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(key) = self.stripe_secret_key() {
            let key = key.expose_secret();
            ensure!(
                !key.starts_with("sk_live_") && !key.starts_with("rk_live_"),
                "STRIPE_SECRET_KEY (--stripe-secret-key) is a live key: `nexus dev` would charge real customers. Use a test key (sk_test_…)"
            );
            ensure!(
                key.starts_with("sk_test_") || key.starts_with("rk_test_"),
                "STRIPE_SECRET_KEY (--stripe-secret-key) is not a test key (sk_test_…)"
            );
        }
        self.admin()?;
        Ok(())
    }

    /// The first admin's account.
    pub(crate) fn admin(&self) -> Result<EcoId> {
        let first = self.admin_eco_ids.split(',').map(str::trim).find(|id| !id.is_empty());
        match first.map(EcoId::parse) {
            Some(Ok(id)) => Ok(id),
            Some(Err(error)) => bail!("ADMIN_ECO_IDS (--admin-eco-ids): {error}"),
            None => bail!("ADMIN_ECO_IDS (--admin-eco-ids) names no account"),
        }
    }

    /// The database to use instead of a private one. An empty variable counts as unset.
    pub(crate) fn database_url(&self) -> Option<&SecretString> {
        self.database_url.as_ref().filter(|url| !url.expose_secret().is_empty())
    }

    /// The Stripe account to use instead of the stand-in.
    pub(crate) fn stripe_secret_key(&self) -> Option<&SecretString> {
        self.stripe_secret_key.as_ref().filter(|key| !key.expose_secret().is_empty())
    }

    /// Whether demo data is wanted.
    pub(crate) fn wants_demo(&self) -> bool {
        !self.empty && self.database_url().is_none() && self.stripe_secret_key().is_none()
    }
}
