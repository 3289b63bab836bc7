//! The four servers and the stand-in Stripe in this process: started through the very functions their own
//! programs call, watched, and stopped in the order in which they depend on each other.

use std::{future::Future, net::SocketAddr};

use anyhow::{Context, Error, Result, anyhow};
use clap::{Args, Command};
use nexus_kit::serve::Listeners;
use secrecy::ExposeSecret;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    DevArgs,
    database::Database,
    folder::Secrets,
    ports::{Addresses, ServerPorts},
    stripe::Stripe,
};

/// Issuer of users' tokens.
pub(crate) const ISSUER: &str = "nexus";
const SHUTDOWN_GRACE: &str = "10s";

/// Who stops first: callers before whom they call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Gateway,
    Services,
    Stripe,
}

const ORDER: [Tier; 3] = [Tier::Gateway, Tier::Services, Tier::Stripe];

struct Ended {
    name: &'static str,
    tier: Tier,
    result: Result<()>,
}

/// What runs in this process.
#[derive(Default)]
pub(crate) struct Servers {
    running: JoinSet<Ended>,
    count: [usize; 3],
    stop: [CancellationToken; 3],
}

impl Servers {
    fn spawn<F, E>(&mut self, name: &'static str, tier: Tier, serve: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Error> + 'static,
    {
        let serving = serve(self.stop[tier as usize].clone());
        self.count[tier as usize] += 1;
        self.running.spawn(async move { Ended { name, tier, result: serving.await.map_err(Into::into) } });
    }

    /// Starts the stand-in Stripe.
    pub(crate) fn start_stripe(&mut self, config: stripe_sim::Config, listener: tokio::net::TcpListener) {
        self.spawn("stripe-sim", Tier::Stripe, |stop| stripe_sim::serve(config, listener, stop));
    }

    /// Starts the three services and the gateway.
    pub(crate) fn start(
        &mut self,
        args: &DevArgs,
        secrets: &Secrets,
        addresses: &Addresses,
        database: &Database,
        stripe: &Stripe,
        ports: ServerPorts,
    ) -> Result<()> {
        let common = Settings::new()
            .set("jwt-secret", secrets.jwt.expose_secret())
            .set("jwt-issuer", ISSUER)
            .set("jwt-audience", "")
            .set("admin-eco-ids", &args.admin_eco_ids)
            .set("service-token-secret", secrets.service_token.expose_secret())
            .set("open-reflection", args.open_reflection)
            .set("open-health", args.open_health)
            .set("shutdown-grace", SHUTDOWN_GRACE);
        let service = |listeners: &Listeners| -> Result<Settings> {
            Ok(common
                .clone()
                .set("grpc-addr", listeners.main_addr()?)
                .set("metrics-addr", listeners.operations_addr()?)
                .set("database-url", database.url()))
        };

        let mut usage: nexus_usage::Config = service(&ports.usage)?.read("usage-svc")?;
        without_tls(&mut usage.serve);
        self.spawn("usage-svc", Tier::Services, |stop| nexus_usage::serve(usage, ports.usage, stop));

        // Whoever tries webhooks here has the receiver on this machine.
        let billing = stripe
            .settings(service(&ports.billing)?)
            .set("webhook-allow-http", true)
            .set("webhook-allowed-networks", "127.0.0.0/8,::1/128");
        let mut billing: nexus_billing::Config = billing.read("billing-svc")?;
        without_tls(&mut billing.serve);
        self.spawn("billing-svc", Tier::Services, |stop| nexus_billing::serve(billing, ports.billing, stop));

        let mut analytics: nexus_analytics::Config = service(&ports.analytics)?.read("analytics-svc")?;
        without_tls(&mut analytics.serve);
        self.spawn("analytics-svc", Tier::Services, |stop| {
            nexus_analytics::serve(analytics, ports.analytics, stop)
        });

        let url = |address: SocketAddr| format!("http://{address}");
        let gateway = common
            .set("http-addr", addresses.gateway.main)
            .set("metrics-addr", addresses.gateway.operations)
            .set("usage-addr", url(addresses.usage.main))
            .set("billing-addr", url(addresses.billing.main))
            .set("analytics-addr", url(addresses.analytics.main))
            .set("cron-secret", secrets.cron.expose_secret());
        let mut gateway: nexus_gateway::Config = gateway.read("gateway")?;
        without_tls(&mut gateway.serve);
        self.spawn("gateway", Tier::Gateway, |stop| nexus_gateway::serve(gateway, ports.gateway, stop));
        Ok(())
    }

    /// The output of `work`, unless a server fails first.
    pub(crate) async fn or_failure<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            output = work => output,
            failure = self.failure() => Err(failure),
        }
    }

    /// Waits until a server ends though nobody told it to, which is a failure.
    pub(crate) async fn failure(&mut self) -> Error {
        match self.next().await {
            Some(Ended { name, result: Err(error), .. }) => error.context(format!("{name} failed")),
            Some(Ended { name, result: Ok(()), .. }) => anyhow!("{name} ended by itself"),
            None => anyhow!("no server runs"),
        }
    }

    /// Stops all, each tier after those that call it. Tells the first failure, after all have ended.
    pub(crate) async fn drain(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for tier in ORDER {
            self.stop[tier as usize].cancel();
            while self.count[tier as usize] > 0 {
                let Some(ended) = self.next().await else { break };
                let result = ended.result.with_context(|| format!("stopping {}", ended.name));
                outcome = outcome.and(result);
            }
        }
        outcome
    }

    /// Cuts all off.
    pub(crate) async fn abort(&mut self) {
        self.running.shutdown().await;
    }

    async fn next(&mut self) -> Option<Ended> {
        let ended = match self.running.join_next().await? {
            Ok(ended) => ended,
            // A panic in a server's own task is a bug; it goes on as one.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => return None,
            },
        };
        self.count[ended.tier as usize] -= 1;
        tracing::info!(server = ended.name, "stopped");
        Some(ended)
    }
}

/// TLS of the environment is for servers that others reach; here all are on loopback.
fn without_tls(args: &mut nexus_kit::config::ServeArgs) {
    args.tls_cert = None;
    args.tls_key = None;
}

/// Flags of a server. What is not set here comes from its environment variables and defaults, as in the
/// server's own program.
#[derive(Clone, Default)]
pub(crate) struct Settings(Vec<String>);

impl Settings {
    fn new() -> Self {
        Self::default()
    }

    /// Sets a flag.
    pub(crate) fn set(mut self, flag: &str, value: impl ToString) -> Self {
        self.0.push(format!("--{flag}={}", value.to_string()));
        self
    }

    fn read<C: Args>(self, server: &'static str) -> Result<C> {
        let command = C::augment_args(Command::new(server).no_binary_name(true));
        let matches = command.try_get_matches_from(self.0).map_err(|e| anyhow!("{server}: {e}"))?;
        C::from_arg_matches(&matches).with_context(|| format!("settings of {server}"))
    }
}
