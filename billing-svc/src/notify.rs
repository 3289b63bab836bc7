//! The workers that notify: customers by signed webhooks, operators by a Slack-compatible one.

use ipnet::IpNet;
use secrecy::ExposeSecret;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{notify_operators::Operators, webhooks::deliver::Deliverer},
    config::NotifyArgs,
    domain::webhook::{address::Reachable, url::Policy},
    outgoing::{self, Client},
};

/// A setting of notifications that cannot be used. It repeats no URL: who knows that of a webhook may post to it.
#[derive(Debug, thiserror::Error)]
pub enum NotifyConfigError {
    /// Not a URL.
    #[error(
        "SLACK_WEBHOOK_URL (--slack-webhook-url) must be a URL such as https://hooks.slack.com/services/…"
    )]
    SlackUrl,
    /// Not networks.
    #[error(
        "WEBHOOK_ALLOWED_NETWORKS (--webhook-allowed-networks): `{0}` is not a network such as 10.1.0.0/16"
    )]
    Network(String),
    /// No TLS.
    #[error("TLS for outgoing requests: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

/// Both workers.
#[derive(Debug)]
pub struct Notifier {
    /// Which URLs customers' endpoints may have.
    pub policy: Policy,
    deliverer: Deliverer,
    operators: Option<Operators>,
}

impl Notifier {
    /// Reads the settings.
    pub fn new(args: &NotifyArgs, pool: PgPool) -> Result<Self, NotifyConfigError> {
        let reachable = Reachable::with(networks(&args.webhook_allowed_networks)?);
        let policy = Policy { reachable, allow_http: args.webhook_allow_http };
        let tls = outgoing::public_roots()?;
        let timeout = args.webhook_timeout;
        let client = Client::new(policy.clone(), outgoing::system_resolver(), tls.clone(), timeout);
        // Deployments hand on a variable that is set to nothing.
        let webhook = args.slack_webhook_url.as_ref().filter(|url| !url.expose_secret().is_empty());
        let operators = match webhook {
            None => None,
            Some(webhook) => {
                // It comes from whoever runs this server.
                let anywhere = Policy { reachable: Reachable::anything(), allow_http: true };
                anywhere.target(webhook.expose_secret()).map_err(|_| NotifyConfigError::SlackUrl)?;
                Some(Operators {
                    pool: pool.clone(),
                    client: Client::new(anywhere, outgoing::system_resolver(), tls, timeout),
                    timeout,
                    webhook: webhook.clone(),
                    overdue_after: args.overage_overdue_after,
                })
            }
        };
        Ok(Self { policy, deliverer: Deliverer { pool, client, timeout }, operators })
    }

    /// Works until `shutdown`, and ends what is begun then.
    pub async fn work(self, shutdown: CancellationToken) {
        let operators = async {
            if let Some(operators) = self.operators {
                operators.work(shutdown.clone()).await;
            }
        };
        tokio::join!(self.deliverer.work(shutdown.clone()), operators);
    }
}

fn networks(text: &str) -> Result<Vec<IpNet>, NotifyConfigError> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| entry.parse().map_err(|_| NotifyConfigError::Network(entry.to_owned()))).collect()
}
