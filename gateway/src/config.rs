use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use nexus_kit::config::{AuthArgs, ServeArgs, parse_timeout};
use secrecy::SecretString;

use crate::{address::Proxies, edge::Origins, pages::config::PagesArgs};

/// Settings of the gateway.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// Address of the HTTP server; port 0: a free one
    #[arg(
        long = "http-addr",
        env = "GATEWAY_HTTP_ADDR",
        default_value = "0.0.0.0:8080",
        value_name = "ADDR"
    )]
    pub http_addr: SocketAddr,
    /// Address of /metrics, /healthz and /readyz; port 0: a free one
    #[arg(
        long = "metrics-addr",
        env = "GATEWAY_METRICS_ADDR",
        default_value = "0.0.0.0:9150",
        value_name = "ADDR"
    )]
    pub metrics_addr: SocketAddr,
    /// Where usage-svc is
    #[arg(long, env = "USAGE_ADDR", default_value = "http://localhost:50051", value_name = "URL")]
    pub usage_addr: String,
    /// Where billing-svc is
    #[arg(long, env = "BILLING_ADDR", default_value = "http://localhost:50052", value_name = "URL")]
    pub billing_addr: String,
    /// Where analytics-svc is
    #[arg(long, env = "ANALYTICS_ADDR", default_value = "http://localhost:50053", value_name = "URL")]
    pub analytics_addr: String,
    /// Certificates (PEM) to trust where the services serve TLS (https:// addresses)
    #[arg(long, env = "TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Longest time one call of a service may take
    #[arg(long, env = "BACKEND_TIMEOUT", default_value = "5s", value_parser = parse_timeout, value_name = "DURATION")]
    pub backend_timeout: Duration,
    /// Longest time that the scheduler waits for a run of billing, 55 s at most; a longer run goes on, and the answer says so
    #[arg(long, env = "CRON_TIMEOUT", default_value = "55s", value_parser = parse_cron_timeout, value_name = "DURATION")]
    pub cron_timeout: Duration,
    /// What the scheduler shows to run billing, 32 bytes or more; unset: its endpoint answers 500
    #[arg(long, env = "CRON_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub cron_secret: Option<SecretString>,
    /// Origins whose pages may call from a browser, comma separated, e.g. `https://app.example.com`; unset: none
    #[arg(long, env = "CORS_ALLOWED_ORIGINS", default_value = "", value_name = "ORIGINS")]
    pub cors_allowed_origins: Origins,
    /// Requests a second that one account may send, and twice as many at once; 0: as many as it likes
    #[arg(long, env = "ACCOUNT_RATE_PER_SECOND", default_value_t = 500, value_name = "N")]
    pub account_rate_per_second: u32,
    /// The same of one address (of IPv6, a network of 56 bits) whose requests show no user and no good API key
    #[arg(long, env = "ADDRESS_RATE_PER_SECOND", default_value_t = 20, value_name = "N")]
    pub address_rate_per_second: u32,
    /// Networks of the proxies in front, whose X-Forwarded-For says whom a request is from, comma separated, e.g. 10.0.0.0/8
    #[arg(long, env = "TRUSTED_PROXIES", default_value = "", value_name = "CIDRS")]
    pub trusted_proxies: Proxies,
    #[command(flatten)]
    pub pages: PagesArgs,
    #[command(flatten)]
    pub auth: AuthArgs,
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What the scheduler's contract allows; less than two seconds would not hold a call.
fn parse_cron_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_timeout(text)?;
    let allowed = Duration::from_secs(2)..=Duration::from_secs(55);
    if allowed.contains(&timeout) { Ok(timeout) } else { Err("must be from 2s to 55s".to_owned()) }
}
