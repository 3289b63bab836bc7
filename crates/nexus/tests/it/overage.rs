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
    process::{Child, ChildStderr, Command},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Terminal, nexus, text};

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
                stripe_proration: nexus_billing::config::Proration::None,
            },
            stripe_webhook_secret: None,
            overage_concurrency: 1,
            overage_recheck_every: std::time::Duration::from_secs(60),
            stripe_events_concurrency: 4,
            dashboard_url: "http://localhost:8080/dashboard/billing".to_owned(),
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

    /// It goes on. A run says that it has begun before it calls Stripe, so the call is waited for first.
    async fn release(&self) -> Result<()> {
        let url = format!("{}/_sim/held", self.stripe);
        nexus_testkit::http::client().get(url).send().await?.error_for_status()?;
        self.sim("/release", json!({})).await
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

    /// Another command, which calls with a token.
    fn overage(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = nexus();
        command.arg("overage").args(arguments).arg("--billing-addr").arg(self.proxy.address().to_string());
        command.env("NEXUS_TOKEN", settings::service_token(&[Scope::BillingRun])?);
        Ok(command)
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
    process.says("goes on: 0 of 2 accounts done so far").await?;
    billing.release().await?;
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
    billing.release().await?;
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

#[tokio::test]
async fn on_a_terminal_a_bar_shows_how_far_the_run_is() -> Result<()> {
    let billing = Billing::start().await?;
    billing.owes("eco_a", true).await?;
    billing.owes("eco_b", true).await?;
    billing.hold().await?;
    let mut command = billing.overage(&["process"])?;
    let (mut terminal, stderr) = Terminal::open(120)?;
    let child = command.stdout(Stdio::piped()).stderr(stderr).spawn()?;
    // It holds the terminal open, too.
    drop(command);
    terminal.shows("0 of 2 accounts, 0 charged, $0.00 in all").await?;
    billing.release().await?;
    terminal.shows("2 of 2 accounts, 2 charged, $0.20 in all").await?;
    ensure!(terminal.seen.contains('█'), "no bar in {:?}", terminal.seen);
    let output = child.wait_with_output().await?;
    assert_eq!(output.status.code(), Some(0));
    ensure!(text(&output.stdout).contains("2 charged, $0.20 in all."), "{}", text(&output.stdout));
    Ok(())
}

#[tokio::test]
async fn a_run_is_followed_by_who_did_not_begin_it_and_listed_with_its_errors() -> Result<()> {
    let billing = Billing::start().await?;
    billing.owes("eco_a", true).await?;
    billing.owes("eco_b", false).await?;
    billing.hold().await?;
    let mut process = billing.process(&[])?;
    process.says("goes on: 0 of 2 accounts").await?;
    let run_id: String =
        sqlx::query_scalar("select run_id::text from eco_overage_runs").fetch_one(&billing.db.pool).await?;
    let other = billing.overage(&["process"])?.output().await?;
    assert_eq!(other.status.code(), Some(0), "{}", text(&other.stderr));
    ensure!(
        text(&other.stdout).contains(&format!("nexus overage watch {run_id}")),
        "{}",
        text(&other.stdout)
    );
    let mut watch = billing.overage(&["watch", &run_id, "--json"])?;
    let mut child = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stderr = BufReader::new(child.stderr.take().context("piped")?).lines();
    let mut watching = Process { child, stderr, said: String::new() };
    watching.says("goes on: 0 of 2 accounts").await?;
    billing.release().await?;
    let (code, stdout, stderr) = watching.end().await?;
    assert_eq!(code, Some(2), "{stderr}");
    let run: Value = serde_json::from_str(&stdout)?;
    assert_eq!((&run["status"], &run["charged"], &run["failed"]), (&json!("finished"), &json!(1), &json!(1)));
    assert_eq!(process.end().await?.0, Some(2));

    let listed = billing.overage(&["runs", "--json"])?.output().await?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    assert_eq!(listed, json!([run]));
    let table = text(&billing.overage(&["runs"])?.output().await?.stdout);
    ensure!(table.contains(&run_id) && table.contains("finished"), "{table}");
    let errors = text(&billing.overage(&["errors", &run_id])?.output().await?.stdout);
    assert_eq!(errors, "eco_b: NO_STRIPE_CUSTOMER: No Stripe customer ID found for eco_b\n");
    let unknown = billing.overage(&["watch", "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00"])?.output().await?;
    assert_eq!(unknown.status.code(), Some(1));
    ensure!(text(&unknown.stderr).contains("RUN_NOT_FOUND"), "{}", text(&unknown.stderr));
    Ok(())
}

#[tokio::test]
async fn a_run_that_failed_is_no_success_to_who_watches() -> Result<()> {
    let billing = Billing::start().await?;
    let run_id = "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00";
    for (status, silent_seconds, word) in [("failed", 0, "failed"), ("running", 31, "silent")] {
        sqlx::query("delete from eco_overage_runs").execute(&billing.db.pool).await?;
        sqlx::query(
            "insert into eco_overage_runs (run_id, status, heartbeat_time, finished_time)
             values ($1::uuid, $2, now() - make_interval(secs => $3), case when $2 = 'failed' then now() end)",
        )
        .bind(run_id)
        .bind(status)
        .bind(f64::from(silent_seconds))
        .execute(&billing.db.pool)
        .await?;
        let watched = billing.overage(&["watch", run_id])?.output().await?;
        assert_eq!(watched.status.code(), Some(1), "{}", text(&watched.stderr));
        ensure!(
            text(&watched.stdout).starts_with(&format!("Run {run_id} {word}:")),
            "{}",
            text(&watched.stdout)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_dry_run_of_many_accounts_says_how_many_there_are() -> Result<()> {
    let billing = Billing::start().await?;
    sqlx::query("insert into eco_identities (eco_id, stripe_customer_id) select 'eco_' || n, 'cus_' || n from generate_series(1, 1001) n")
        .execute(&billing.db.pool)
        .await?;
    sqlx::query("insert into eco_subscriptions (eco_id, plan, plan_version, status, anchor_time) select eco_id, 'pro', 1, 'active', now() - interval '3 days' from eco_identities")
        .execute(&billing.db.pool)
        .await?;
    sqlx::query("select increment_api_calls(eco_id, 100100) from eco_identities")
        .execute(&billing.db.pool)
        .await?;
    let dry = billing.overage(&["process", "--dry-run"])?.output().await?;
    assert_eq!(dry.status.code(), Some(0), "{}", text(&dry.stderr));
    let said = text(&dry.stdout);
    ensure!(said.contains("The first 1,000 of 1,001 charges are shown."), "{said}");
    ensure!(said.contains("1,001 accounts looked at, 1,001 would be charged $100.10 in all"), "{said}");
    let row = said.lines().nth(1).context("a charge")?;
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells, ["eco_1", "100,100", "100,000", "100", "0.001", "$0.10", "$0.00", "$0.10"]);
    ensure!(billing.runs().await?.is_empty());
    Ok(())
}
