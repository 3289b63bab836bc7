use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use clap::{Args, ValueEnum};
use nexus_kit::config::{AuthArgs, DbArgs, ServeArgs, parse_timeout};
use secrecy::SecretString;

/// Settings of billing-svc.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// Address of the gRPC server; port 0: a free one
    #[arg(
        long = "grpc-addr",
        env = "BILLING_GRPC_ADDR",
        default_value = "0.0.0.0:50052",
        value_name = "ADDR"
    )]
    pub grpc_addr: SocketAddr,
    /// Address of /metrics, /healthz and /readyz; port 0: a free one
    #[arg(
        long = "metrics-addr",
        env = "BILLING_METRICS_ADDR",
        default_value = "0.0.0.0:9152",
        value_name = "ADDR"
    )]
    pub metrics_addr: SocketAddr,
    #[command(flatten)]
    pub auth: AuthArgs,
    #[command(flatten)]
    pub serve: ServeArgs,
    #[command(flatten)]
    pub db: DbArgs,
    #[command(flatten)]
    pub stripe: StripeArgs,
    /// Signing secret of Stripe's webhook endpoint, or several separated by commas while one is rolled; unset: webhooks
    /// are refused
    #[arg(long, env = "STRIPE_WEBHOOK_SECRET", hide_env_values = true, value_name = "SECRETS")]
    pub stripe_webhook_secret: Option<SecretString>,
    /// Page of the product where customers come back to from a checkout
    #[arg(
        long,
        env = "DASHBOARD_URL",
        default_value = "http://localhost:8080/dashboard/billing",
        value_name = "URL"
    )]
    pub dashboard_url: String,
    #[command(flatten)]
    pub notify: NotifyArgs,
    /// Accounts a run of ProcessOverage works on at once; at least the rate, times the seconds that Stripe takes
    #[arg(long, env = "OVERAGE_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub overage_concurrency: u32,
    /// How often charges are looked for whose recheck is due: ten minutes after an attempt was replaced
    #[arg(long, env = "OVERAGE_RECHECK_EVERY", default_value = "60s", value_parser = parse_timeout, value_name = "DURATION")]
    pub overage_recheck_every: Duration,
    /// Events of Stripe's that are applied at once; each has a connection for as long as Stripe takes to answer
    #[arg(long, env = "STRIPE_EVENTS_CONCURRENCY", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    pub stripe_events_concurrency: u32,
}

/// Who is notified, and how.
#[derive(Args, Debug, Clone)]
pub struct NotifyArgs {
    /// Slack-compatible webhook that operators hear of failed and overdue runs and of drift by; unset: they are not told
    #[arg(long, env = "SLACK_WEBHOOK_URL", hide_env_values = true, value_name = "URL")]
    pub slack_webhook_url: Option<SecretString>,
    /// How long there may be no finished run of ProcessOverage over all accounts before operators are told
    #[arg(long, env = "OVERAGE_OVERDUE_AFTER", default_value = "26h", value_parser = parse_timeout, value_name = "DURATION")]
    pub overage_overdue_after: Duration,
    /// Longest time one request to a webhook may take
    #[arg(long, env = "WEBHOOK_TIMEOUT", default_value = "15s", value_parser = parse_timeout, value_name = "DURATION")]
    pub webhook_timeout: Duration,
    /// Whether customers' webhooks may be at http:// URLs
    #[arg(long, env = "WEBHOOK_ALLOW_HTTP", default_value_t = false, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub webhook_allow_http: bool,
    /// Networks that customers' webhooks may be in although they are not public, comma separated, e.g. 10.1.0.0/16
    #[arg(long, env = "WEBHOOK_ALLOWED_NETWORKS", default_value = "", value_name = "CIDRS")]
    pub webhook_allowed_networks: String,
}

impl Default for NotifyArgs {
    /// As without any setting.
    fn default() -> Self {
        Self {
            slack_webhook_url: None,
            overage_overdue_after: Duration::from_secs(26 * 3600),
            webhook_timeout: Duration::from_secs(15),
            webhook_allow_http: false,
            webhook_allowed_networks: String::new(),
        }
    }
}

/// How Stripe is reached.
#[derive(Args, Debug, Clone)]
pub struct StripeArgs {
    /// Secret key of Stripe's API
    #[arg(long, env = "STRIPE_SECRET_KEY", hide_env_values = true, value_name = "KEY")]
    pub stripe_secret_key: SecretString,
    /// Where Stripe's API is; http:// is for stand-ins and refused with a live key
    #[arg(long, env = "STRIPE_API_BASE", default_value = "https://api.stripe.com/", value_name = "URL")]
    pub stripe_api_base: String,
    /// Requests a second at most; Stripe allows 25 per endpoint unless agreed otherwise
    #[arg(long, env = "STRIPE_RATE_PER_SECOND", default_value = "25", value_name = "N")]
    pub stripe_rate_per_second: NonZeroU32,
    /// Longest time one request may take; what became of it is then in doubt
    #[arg(long, env = "STRIPE_TIMEOUT", default_value = "30s", value_parser = parse_timeout, value_name = "DURATION")]
    pub stripe_timeout: Duration,
    /// How what is left of a billing period is charged when a plan changes within it
    #[arg(
        long,
        env = "STRIPE_PRORATION",
        value_enum,
        default_value = "create_prorations",
        value_name = "HOW"
    )]
    pub stripe_proration: Proration,
}

/// How a change of plan within a billing period is charged.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub enum Proration {
    /// On the next invoice.
    CreateProrations,
    /// On an invoice made at once.
    AlwaysInvoice,
    /// Not at all: the new price begins with the next period.
    None,
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    #[test]
    fn the_default_of_notifications_is_what_no_flag_gives() -> Result<(), clap::Error> {
        let command = NotifyArgs::augment_args(Command::new("notify"));
        let parsed = NotifyArgs::from_arg_matches(&command.try_get_matches_from(["notify"])?)?;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", NotifyArgs::default()));
        Ok(())
    }
}
