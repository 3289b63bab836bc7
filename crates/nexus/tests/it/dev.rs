use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result};
use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{Dev, FREE_PORTS, argument, claims, nexus, processes_with, run, text};

#[tokio::test]
async fn an_empty_ephemeral_run_is_ready_and_leaves_nothing() -> Result<()> {
    let closed = ["--open-health", "false", "--open-reflection", "false"];
    let dev = Dev::start(&[&["--ephemeral", "--empty"], &closed[..]].concat()).await?;
    let mut health =
        HealthClient::new(nexus_client::channel(&format!("http://{}", dev.text("/usage_addr")?))?);
    let refused = health.check(HealthCheckRequest::default()).await.expect_err("it shows no credentials");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert_eq!(fs::metadata(&dev.ready_file)?.permissions().mode() & 0o777, 0o600);
    let mut keys: Vec<_> = dev.ready.as_object().context("an object")?.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "analytics_addr",
            "api_keys",
            "billing_addr",
            "cron_secret",
            "database_url",
            "gateway_url",
            "metrics_urls",
            "stripe_secret_key",
            "stripe_url",
            "tokens",
            "usage_addr"
        ]
    );
    for who in ["admin", "free", "pro", "enterprise", "service"] {
        assert!(dev.text(&format!("/tokens/{who}/eco_id"))?.len() > 4);
    }
    for who in ["admin", "free", "pro", "enterprise"] {
        let claims = claims(dev.text(&format!("/tokens/{who}/token"))?)?;
        let mut names: Vec<_> = claims.as_object().context("an object")?.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["ecoId", "email", "exp", "iss"], "{who}");
        assert_eq!(claims["ecoId"], dev.ready["tokens"][who]["eco_id"]);
        assert!(claims["email"].as_str().is_some_and(|email| email.contains('@')), "{claims}");
    }
    assert_eq!(dev.ready["api_keys"], json!({"free": null, "pro": null, "enterprise": null}));

    let admin = dev.text("/tokens/admin/token")?;
    let overview = dev.get("/gateway_url", "/api/admin/analytics/overview", admin).await?;
    assert_eq!((&overview["total_users"], &overview["mrr"]), (&json!(0), &json!(0)));
    for server in ["gateway", "usage", "billing", "analytics"] {
        let url = dev.text(&format!("/metrics_urls/{server}"))?;
        assert!(
            nexus_testkit::http::client().get(url).send().await?.text().await?.contains("nexus_requests")
        );
    }

    let socket = dev.socket_folder()?;
    assert!(!processes_with(&socket)?.is_empty(), "PostgreSQL runs under {socket}");
    dev.stop().await?;
    assert_eq!(processes_with(&socket)?, Vec::<String>::new());
    assert!(!fs::exists(&socket)?, "the database is thrown away");
    Ok(())
}

#[tokio::test]
async fn a_killed_run_is_taken_up_by_the_next() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut arguments = vec!["--empty", "--data-dir", argument(folder.path())?];
    arguments.extend(FREE_PORTS);
    let first = Dev::start(&arguments).await?;

    // Meanwhile the folder is this run's.
    let mut second = vec!["dev", "--data-dir", argument(folder.path())?];
    second.extend(FREE_PORTS);
    let refused = run(&second).await?;
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("--data-dir"), "{}", text(&refused.stderr));

    let pool = first.database().await?;
    sqlx::query("insert into eco_identities (eco_id) values ('eco_kept')").execute(&pool).await?;
    pool.close().await;
    let (cron, token) =
        (first.text("/cron_secret")?.to_owned(), first.text("/tokens/admin/token")?.to_owned());
    first.kill().await?;

    let next = Dev::start(&arguments).await?;
    assert_eq!(next.text("/cron_secret")?, cron);
    next.get("/gateway_url", "/api/admin/analytics/overview", &token).await?;
    let pool = next.database().await?;
    let kept: i64 = sqlx::query_scalar("select count(*) from eco_identities where eco_id = 'eco_kept'")
        .fetch_one(&pool)
        .await?;
    assert_eq!(kept, 1);
    pool.close().await;
    let secrets = fs::metadata(folder.path().join("secrets.json"))?;
    assert_eq!(secrets.permissions().mode() & 0o777, 0o600);

    let socket = next.socket_folder()?;
    next.stop().await?;
    assert_eq!(processes_with(&socket)?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_live_stripe_key_is_refused_before_anything_is_made() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let output = nexus()
        .args(["dev", "--data-dir", argument(&data)?])
        .env("STRIPE_SECRET_KEY", "sk_live_0123456789")
        .output()
        .await?;
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("STRIPE_SECRET_KEY") && !said.contains("0123456789"), "{said}");
    assert!(!data.exists());
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_told_with_its_flag() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let output = run(&["dev", "--ephemeral", "--empty", "--billing-port", &port]).await?;
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains(&port) && said.contains("--billing-port"), "{said}");

    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let mut arguments = vec!["dev", "--empty", "--data-dir", argument(&data)?, "--billing-port", &port];
    arguments.extend(FREE_PORTS.iter().filter(|flag| !flag.starts_with("--billing-port")));
    let output = run(&arguments).await?;
    assert!(text(&output.stderr).contains("--billing-port"), "{}", text(&output.stderr));
    assert!(!data.exists(), "a run that cannot begin leaves no folder");
    Ok(())
}

#[tokio::test]
async fn a_given_database_of_something_else_is_left_as_it_is() -> Result<()> {
    let db = nexus_testkit::db::TestDb::new().await?;
    sqlx::raw_sql("drop schema public cascade; create schema public; create table customers (id int)")
        .execute(&db.pool)
        .await?;
    let output = run(&["dev", "--ephemeral", "--database-url", db.url()]).await?;
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("`customers`"), "{said}");
    let tables: i64 = sqlx::query_scalar("select count(*) from pg_tables where schemaname = 'public'")
        .fetch_one(&db.pool)
        .await?;
    assert_eq!(tables, 1);
    Ok(())
}

#[tokio::test]
async fn a_given_database_gets_the_schema_and_no_demo_data() -> Result<()> {
    let db = nexus_testkit::db::TestDb::new().await?;
    let dev = Dev::start(&["--ephemeral", "--database-url", db.url()]).await?;
    assert_eq!(dev.text("/database_url")?, db.url());
    let accounts: i64 = sqlx::query_scalar("select count(*) from eco_identities").fetch_one(&db.pool).await?;
    assert_eq!(accounts, 0);
    dev.stop().await
}
