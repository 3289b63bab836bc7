//! `nexus overage process` against a billing-svc: it follows a run to its end and says how that was.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use nexus_billing::config::{Config, StripeArgs};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, serve::Listeners};
use nexus_testkit::{db::TestDb, proxy::Proxy, seed, settings};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStderr},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{nexus, text};

const STRIPE_KEY: &str = "sk_test_overage";

/// A billing-svc with a stand-in Stripe, reached through a proxy that can be cut.
struct Billing {
    db: TestDb,
    stripe: String,
    proxy: Proxy,
    _stop: DropGuard,
}

impl Billing {
    async fn start() -> Result<Self> {
        let (db, stop) = (TestDb::new().await?, CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let stripe = format!("http://{}", listener.local_addr()?);
        tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));
        let config = Config {
            grpc_addr: settings::ANY_PORT,
            metrics_addr: settings::ANY_PORT,
            auth: settings::auth_args(),
            serve: settings::serve_args(),
            db: db.args(),
            stripe: StripeArgs {
                stripe_secret_key: STRIPE_KEY.into(),
                stripe_api_base: stripe.clone(),
                stripe_rate_per_second: const { std::num::NonZeroU32::new(1_000).expect("not zero") },
                stripe_timeout: std::time::Duration::from_secs(20),
            },
            overage_concurrency: 1,
            notify: nexus_billing::config::NotifyArgs::default(),
        };
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let proxy = Proxy::before_tcp(listeners.main_addr()?).await?;
        tokio::spawn(nexus_billing::serve(config, listeners, stop.clone()));
        Ok(Self { db, stripe, proxy, _stop: stop.drop_guard() })
    }

    /// A pro account that owes ten cents; without a customer it cannot be charged.
    async fn owes(&self, eco_id: &str, customer: bool) -> Result<()> {
        seed::account(&self.db.pool, eco_id, Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
        if customer {
            let form = [("email", "a@example.com")];
            let url = format!("{}/v1/customers", self.stripe);
            let http = nexus_testkit::http::client();
            let answer: Value =
                http.post(url).bearer_auth(STRIPE_KEY).form(&form).send().await?.json().await?;
            let customer = answer["id"].as_str().context("an id")?;
            seed::stripe_ids(&self.db.pool, eco_id, customer, None).await?;
        }
        let record = "select increment_api_calls($1, 100100)";
        sqlx::query(record).bind(eco_id).execute(&self.db.pool).await?;
        Ok(())
    }

    /// A call to the part that only the stand-in has.
    async fn sim(&self, path: &str, body: Value) -> Result<()> {
        let url = format!("{}/_sim{path}", self.stripe);
        let answer = nexus_testkit::http::client().post(url).json(&body).send().await?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(())
    }

    /// Stripe's next answer is held back.
    async fn hold(&self) -> Result<()> {
        self.sim("/faults", json!({ "method": "POST", "path": "/v1/invoiceitems", "hold": true })).await
    }

    fn process(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = nexus();
        command.args(["overage", "process", "--json", "--billing-addr"]);
        command.arg(self.proxy.address().to_string()).args(arguments);
        command.env("NEXUS_TOKEN", settings::service_token(&[Scope::BillingRun])?);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stderr = BufReader::new(child.stderr.take().context("piped")?).lines();
        Ok(Process { child, stderr, said: String::new() })
    }

    async fn runs(&self) -> Result<Vec<String>> {
        let statuses = sqlx::query_scalar("select status from eco_overage_runs order by started_time");
        Ok(statuses.fetch_all(&self.db.pool).await?)
    }
}

/// The command at work.
struct Process {
    child: Child,
    stderr: Lines<BufReader<ChildStderr>>,
    said: String,
}

impl Process {
    /// Waits until it says something on its standard error.
    async fn says(&mut self, words: &str) -> Result<()> {
        while let Some(line) = self.stderr.next_line().await? {
            self.said.push_str(&line);
            if line.contains(words) {
                return Ok(());
            }
        }
        anyhow::bail!("it never said `{words}`: {}", self.said)
    }

    /// Its exit code, and what it wrote on both ways.
    async fn end(mut self) -> Result<(Option<i32>, String, String)> {
        while let Some(line) = self.stderr.next_line().await? {
            self.said.push_str(&line);
        }
        let Output { status, stdout, .. } = self.child.wait_with_output().await?;
        Ok((status.code(), text(&stdout), self.said))
    }
}

#[tokio::test]
async fn a_run_is_followed_to_its_end_and_its_failures_are_told() -> Result<()> {
    let billing = Billing::start().await?;
    billing.owes("eco_a", true).await?;
    billing.owes("eco_b", false).await?;
    billing.hold().await?;
    let mut process = billing.process(&["--call-timeout", "1s"])?;
    process.says("goes on: 0 accounts done so far").await?;
    billing.sim("/release", json!({})).await?;
    let (code, stdout, stderr) = process.end().await?;
    assert_eq!(code, Some(2), "{stderr}");
    let run: Value = serde_json::from_str(&stdout)?;
    assert_eq!((&run["running"], &run["processed"], &run["charged"]), (&json!(false), &json!(2), &json!(1)));
    assert_eq!(run["errors"][0]["eco_id"], "eco_b");
    assert_eq!(billing.runs().await?, ["finished"]);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_breaks_ends_nothing() -> Result<()> {
    let billing = Billing::start().await?;
    billing.owes("eco_a", true).await?;
    billing.hold().await?;
    let mut process = billing.process(&["--call-timeout", "2s"])?;
    process.says("goes on").await?;
    billing.proxy.cut();
    process.says("it is called again").await?;
    billing.proxy.mend();
    billing.sim("/release", json!({})).await?;
    let (code, stdout, stderr) = process.end().await?;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout)?["charged"], 1);
    assert_eq!(billing.runs().await?, ["finished"]);
    Ok(())
}

#[tokio::test]
async fn a_run_that_goes_on_failing_is_no_success() -> Result<()> {
    let billing = Billing::start().await?;
    billing.owes("eco_a", true).await?;
    sqlx::query("revoke update on eco_usage_records from nexus_billing").execute(&billing.db.pool).await?;
    let (code, stdout, stderr) = billing.process(&[])?.end().await?;
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    ensure!(stderr.contains("RUN_FAILED"), "{stderr}");
    assert_eq!(billing.runs().await?, ["failed"]);
    Ok(())
}

#[tokio::test]
async fn another_run_at_work_is_told_and_no_failure() -> Result<()> {
    let billing = Billing::start().await?;
    let mut other = nexus_kit::db::acquire(&billing.db.pool).await?;
    sqlx::query("select pg_advisory_lock(1853383273, 2)").execute(&mut *other).await?;
    let (code, stdout, stderr) = billing.process(&[])?.end().await?;
    assert_eq!(code, Some(0), "{stderr}");
    let run: Value = serde_json::from_str(&stdout)?;
    assert_eq!((&run["already_running"], &run["processed"]), (&json!(true), &json!(0)));
    Ok(())
}
