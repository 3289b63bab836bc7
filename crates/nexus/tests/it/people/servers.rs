//! The three services, and commands that call them.

use std::{num::NonZeroU32, process::Output, sync::LazyLock, time::Duration};

use anyhow::{Result, ensure};
use nexus_billing::config::{NotifyArgs, Proration, StripeArgs};
use nexus_kit::{auth::Scope, serve::Listeners};
use nexus_testkit::{
    db::TestDb,
    settings::{self, ANY_PORT},
};
use regex::Regex;
use serde_json::Value;
use tokio::{net::TcpListener, process::Command};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{nexus, text};

pub(super) const STRIPE_KEY: &str = "sk_test_people";

pub(super) struct Servers {
    pub(super) db: TestDb,
    pub(super) stripe: String,
    pub(super) usage: String,
    pub(super) billing: String,
    pub(super) analytics: String,
    _stop: DropGuard,
}

impl Servers {
    pub(super) async fn start() -> Result<Self> {
        let (db, stop) = (TestDb::new().await?, CancellationToken::new());
        let listener = TcpListener::bind(ANY_PORT).await?;
        let stripe = format!("http://{}", listener.local_addr()?);
        tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));

        let config = usage_config(&db);
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let usage = listeners.main_addr()?.to_string();
        tokio::spawn(nexus_usage::serve(config, listeners, stop.clone()));

        let config = billing_config(&db, &stripe);
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let billing = listeners.main_addr()?.to_string();
        tokio::spawn(nexus_billing::serve(config, listeners, stop.clone()));

        let config = nexus_analytics::Config {
            grpc_addr: ANY_PORT,
            metrics_addr: ANY_PORT,
            auth: settings::auth_args(),
            serve: settings::serve_args(),
            db: db.args(),
        };
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let analytics = listeners.main_addr()?.to_string();
        tokio::spawn(nexus_analytics::serve(config, listeners, stop.clone()));
        Ok(Self { db, stripe, usage, billing, analytics, _stop: stop.drop_guard() })
    }

    /// The binary with these servers' addresses and a token.
    pub(super) fn command(&self, token: &str, arguments: &[&str]) -> Command {
        let mut command = nexus();
        command.args(arguments).env("NEXUS_TOKEN", token);
        for (name, address) in [
            ("USAGE_ADDR", &self.usage),
            ("BILLING_ADDR", &self.billing),
            ("ANALYTICS_ADDR", &self.analytics),
        ] {
            command.env(name, address);
        }
        command
    }

    /// Runs it to its end.
    pub(super) async fn run(&self, token: &str, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(token, arguments).output().await?)
    }

    /// What it prints; it must end well.
    pub(super) async fn says(&self, token: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(token, arguments).await?;
        ensure!(output.status.code() == Some(0), "{arguments:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// The one JSON document that it prints with `--json`.
    pub(super) async fn json(&self, token: &str, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        Ok(serde_json::from_str(&self.says(token, &arguments).await?)?)
    }

    /// What it says when it fails; it prints nothing then.
    pub(super) async fn refuses(&self, token: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(token, arguments).await?;
        ensure!(output.status.code() == Some(1), "{arguments:?} ended with {}", output.status);
        ensure!(output.stdout.is_empty(), "{arguments:?}: {}", text(&output.stdout));
        Ok(text(&output.stderr))
    }
}

fn usage_config(db: &TestDb) -> nexus_usage::Config {
    nexus_usage::Config {
        grpc_addr: ANY_PORT,
        metrics_addr: ANY_PORT,
        raw_retention_days: 45,
        ingest_queue: 100_000,
        flush_timeout: Duration::from_secs(35),
        key_stale_max: Duration::from_secs(60),
        spool_dir: None,
        spool_max_bytes: 1 << 30,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db: db.args(),
    }
}

fn billing_config(db: &TestDb, stripe: &str) -> nexus_billing::Config {
    nexus_billing::Config {
        grpc_addr: ANY_PORT,
        metrics_addr: ANY_PORT,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db: db.args(),
        stripe: StripeArgs {
            stripe_secret_key: STRIPE_KEY.into(),
            stripe_api_base: stripe.to_owned(),
            stripe_rate_per_second: const { NonZeroU32::new(1_000).expect("not zero") },
            stripe_timeout: Duration::from_secs(20),
            stripe_proration: Proration::None,
        },
        stripe_webhook_secret: None,
        overage_concurrency: 1,
        overage_recheck_every: Duration::from_secs(60),
        stripe_events_concurrency: 4,
        dashboard_url: "http://localhost:8080/dashboard/billing".to_owned(),
        notify: NotifyArgs::default(),
    }
}

/// A service that may do what operators do.
pub(super) fn service() -> Result<String> {
    settings::service_token(&[Scope::UsageWrite, Scope::UsageCheck, Scope::AccountsWrite, Scope::BillingRun])
}

/// A text as a snapshot has it: times, and what follows from the time of the test, are blotted out, as wide as they are.
pub(super) fn blotted(text: &str) -> String {
    static TIME: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2} UTC").expect("a pattern"));
    static DAY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d{4}-\d{2}-\d{2}").expect("a pattern"));
    static LEFT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d+ (days|hours|minutes) left").expect("a pattern"));
    static ID: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").expect("a pattern"));
    let text = ID.replace_all(text, "iiiiiiii-iiii-iiii-iiii-iiiiiiiiiiii");
    let text = TIME.replace_all(&text, "YYYY-MM-DD hh:mm UTC");
    let text = DAY.replace_all(&text, "YYYY-MM-DD");
    LEFT.replace_all(&text, "some time left").into_owned()
}
