//! `nexus reconcile` against a billing-svc: what it says, and how it ends.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use nexus_billing::config::{Config, StripeArgs};
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, serve::Listeners};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{nexus, text};

/// Runs the command; its exit code and what it wrote on both ways.
async fn reconcile(address: &str, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let mut command = nexus();
    command.args(["reconcile", "--billing-addr", address]).args(arguments);
    command.env("NEXUS_TOKEN", settings::service_token(&[Scope::BillingRun])?);
    let output = command.output().await?;
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[tokio::test]
async fn differences_are_told_and_repaired_and_the_exit_code_says_whether_any_are_left() -> Result<()> {
    let (db, stop) = (TestDb::new().await?, CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let stripe_api_base = format!("http://{}", listener.local_addr()?);
    tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));
    let config = Config {
        grpc_addr: settings::ANY_PORT,
        metrics_addr: settings::ANY_PORT,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db: db.args(),
        stripe: StripeArgs {
            stripe_secret_key: "sk_test_reconcile".into(),
            stripe_api_base,
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
    let address = listeners.main_addr()?.to_string();
    tokio::spawn(nexus_billing::serve(config, listeners, stop));
    seed::account(&db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    sqlx::query(
        "insert into eco_usage_records (eco_id, period_start, period_end, plan, plan_version, currency_code, billed_micros)
         select eco_id, nexus_period_start(anchor_time, now()), nexus_period_end(anchor_time, now()), plan, plan_version,
                'USD', 10000
         from eco_subscriptions",
    )
    .execute(&db.pool)
    .await?;

    let (code, stdout, stderr) = reconcile(&address, &[]).await?;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(
        stdout.contains("eco_a: LEDGER_SUM_DIFFERS ($0.01): The ledger's charges are 0.00 USD"),
        "{stdout}"
    );
    let (code, stdout, stderr) = reconcile(&address, &["--repair", "--json"]).await?;
    assert_eq!(code, Some(0), "{stderr}");
    let found: Value = serde_json::from_str(&stdout)?;
    assert_eq!((&found["difference_count"], &found["repaired_count"]), (&json!(1), &json!(1)));
    assert_eq!(found["differences"][0]["kind"], "LEDGER_SUM_DIFFERS");
    let (code, stdout, _) = reconcile(&address, &["--account", "eco_a", "--json"]).await?;
    assert_eq!((code, &serde_json::from_str::<Value>(&stdout)?["difference_count"]), (Some(0), &json!(0)));
    let (code, stdout, stderr) = reconcile(&address, &["--account", "nobody"]).await?;
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("account_ids[0]"), "{stderr}");
    Ok(())
}
