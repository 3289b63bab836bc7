//! The real Envoy with the example's own configuration, in front of a plain backend. `./test` brings it.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use axum::{Json, Router, extract::State, http::HeaderMap};
use chrono::{TimeDelta, Utc};
use nexus_kit::auth::Scope;
use nexus_proto::{
    common::v1::Plan,
    usage::v1::{GetCurrentUsageRequest, RecordUsageRequest, UsageEvent},
};
use nexus_testkit::{
    seed,
    settings::{ANY_PORT, service_token},
};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::watch,
};

use super::suite::{Server, Suite, event, server_env};

/// What a client made up.
const FORGED: &str = "0195e5a0-0000-7000-8000-000000000001";
const DENIED: StatusCode = StatusCode::TOO_MANY_REQUESTS;

/// An Envoy that runs; killed when dropped.
struct Envoy {
    _child: Child,
    _folder: TempDir,
    http: reqwest::Client,
    clients: String,
    services: String,
    /// How many requests reached the backend.
    served: watch::Receiver<usize>,
}

impl Envoy {
    /// With the example's configuration: its ports and what else is told are replaced.
    async fn start(usage: &str, replace: &[(&str, &str)]) -> Result<Self> {
        let (backend, served) = backend().await?;
        let port = usage.rsplit(':').next().context("an address has a port")?;
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/envoy/envoy.yaml");
        let mut config = fs::read_to_string(file)?;
        let ports = [("10000", "0"), ("10001", "0"), ("9901", "0"), ("3000", &backend), ("50051", port)];
        for (from, to) in
            ports.map(|(from, to)| (format!("port_value: {from} "), format!("port_value: {to} ")))
        {
            ensure!(config.matches(&from).count() == 1, "{file} has `{from}` once");
            config = config.replace(&from, &to);
        }
        // How long usage-svc may take to answer is for production; no test is about it.
        let patience = ("timeout: 1s", "timeout: 20s");
        for (from, to) in replace.iter().copied().chain([patience]) {
            ensure!(config.contains(from), "{file} has `{from}`");
            config = config.replace(from, to);
        }
        Self::run(&config, served).await
    }

    async fn run(config: &str, served: watch::Receiver<usize>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (file, admin) = (folder.path().join("envoy.yaml"), folder.path().join("admin"));
        fs::write(&file, config)?;
        let mut child = Command::new("envoy")
            .args(["--disable-hot-restart", "--concurrency", "1"])
            .arg("--config-path")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin)
            .env("NEXUS_TOKEN", service_token(&[Scope::UsageCheck])?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("envoy is not there: run the tests with ./test, which brings it")?;
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        let mut log = String::new();
        while !log.contains("starting workers") {
            let line = lines.next_line().await?.with_context(|| format!("Envoy ended:\n{log}"))?;
            log.push_str(&line);
            log.push('\n');
        }
        // Read on, so that it never waits for its log to be read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });

        let http = nexus_testkit::http::client();
        let admin = format!("http://{}/listeners?format=json", fs::read_to_string(admin)?);
        let listeners: Value = http.get(admin).send().await?.json().await?;
        let url = |name: &str| {
            let all = listeners["listener_statuses"].as_array()?;
            let address = &all.iter().find(|l| l["name"] == name)?["local_address"]["socket_address"];
            Some(format!("http://127.0.0.1:{}/v1/reports", address["port_value"].as_u64()?))
        };
        let url = |name| url(name).with_context(|| format!("no listener {name}: {listeners}"));
        Ok(Self {
            _child: child,
            _folder: folder,
            http,
            clients: url("clients")?,
            services: url("services")?,
            served,
        })
    }

    /// A client's request; it tries to bring an admission of its own.
    async fn by_client(&self, header: &str, value: &str) -> Result<Response> {
        let request = self.http.get(&self.clients).header("x-nexus-admission", FORGED);
        Ok(request.header(header, value).send().await?)
    }

    async fn by_service(&self, account: &str) -> Result<Response> {
        Ok(self.http.get(&self.services).header("x-account", account).send().await?)
    }

    fn served(&self) -> usize {
        *self.served.borrow()
    }
}

/// Answers with the admissions that a request carries. Its port, and how many requests it has had.
async fn backend() -> Result<(String, watch::Receiver<usize>)> {
    async fn answer(State(served): State<watch::Sender<usize>>, headers: HeaderMap) -> Json<Value> {
        served.send_modify(|n| *n += 1);
        let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        Json(headers.get_all("x-nexus-admission").iter().map(text).collect())
    }
    let (count, served) = watch::channel(0);
    let listener = TcpListener::bind(ANY_PORT).await?;
    let port = listener.local_addr()?.port().to_string();
    let app = Router::new().fallback(answer).with_state(count);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((port, served))
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

fn number(answer: &Response, name: &str) -> Result<i64> {
    header(answer, name)
        .with_context(|| format!("{name} is missing: {answer:?}"))?
        .parse()
        .context("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_pass_envoy_and_the_next_is_429() -> Result<()> {
    let suite = Suite::start().await?;
    let key = suite.account("eco_free", Plan::Free).await?;
    let envoy = Envoy::start(&suite.servers["usage"].main, &[]).await?;
    let bearer = format!("ApiKey {key}");

    let mut admissions = Vec::new();
    let mut resets = 0;
    for left in (0..1_000).rev() {
        let answer = match left % 3 {
            0 => envoy.by_client("authorization", &bearer).await?,
            1 => envoy.by_client("x-api-key", &key).await?,
            _ => envoy.by_service("eco_free").await?,
        };
        assert_eq!(answer.status(), StatusCode::OK, "with {left} left");
        assert_eq!(header(&answer, "x-ratelimit-limit"), Some(r#"1000, 1000;w=2592000;name="free""#));
        assert_eq!(number(&answer, "x-ratelimit-remaining")?, left);
        resets = number(&answer, "x-ratelimit-reset")?;
        let rest = format!(r#""free-monthly";r={left};t="#);
        assert!(header(&answer, "ratelimit").is_some_and(|r| r.starts_with(&rest)), "{answer:?}");
        let [admission] = answer.json::<[String; 1]>().await.context("one admission goes upstream")?;
        assert_ne!(admission, FORGED);
        admissions.push(admission);
    }

    let refused = envoy.by_client("authorization", &bearer).await?;
    assert_eq!(refused.status(), DENIED);
    assert_eq!((envoy.served(), number(&refused, "x-ratelimit-remaining")?), (1_000, 0));
    let policy = header(&refused, "ratelimit-policy");
    assert!(policy.is_some_and(|p| p.starts_with(r#""free-monthly";q=1000;w="#)), "{refused:?}");
    assert!(header(&refused, "ratelimit").is_some_and(|r| r.starts_with(r#""free-monthly";r=0;t="#)));
    assert!(number(&refused, "retry-after")? >= 1);
    assert_eq!(envoy.by_service("eco_free").await?.status(), DENIED, "whoever asks for the account");

    // What the backend records with an admission was consumed when Envoy asked.
    let mut usage = suite.usage()?;
    let event = UsageEvent { admission: admissions.swap_remove(500), ..event("eco_free", 1) };
    usage.record_usage(suite.request(RecordUsageRequest { event: Some(event) })?).await?;
    let current = GetCurrentUsageRequest { eco_id: "eco_free".into() };
    let current = usage.get_current_usage(suite.request(current)?).await?.into_inner();
    assert_eq!((current.api_calls_count, current.consumed_count), (1, 1_000));
    let end = current.period_end_time.context("a period ends")?.seconds;
    let off = Utc::now().timestamp() + resets - end;
    assert!(off.abs() < 60, "x-ratelimit-reset is {off} s off");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_refuses_who_is_unknown_and_does_not_limit_who_names_nobody() -> Result<()> {
    let suite = Suite::start().await?;
    let key = suite.account("eco_free", Plan::Free).await?;
    let envoy = Envoy::start(&suite.servers["usage"].main, &[]).await?;
    let wrong = format!("{key}x");
    for refused in [
        envoy.by_service("eco_nobody").await?,
        envoy.by_client("x-api-key", &wrong).await?,
        envoy.by_client("authorization", &format!("apikey {wrong}")).await?,
        envoy.by_client("authorization", "ApiKey none").await?,
    ] {
        assert_eq!((refused.status(), header(&refused, "retry-after")), (DENIED, None));
        assert_eq!(header(&refused, "x-ratelimit-limit"), Some(r#"0, 0;w=2592000;name="unknown""#));
        assert_eq!(number(&refused, "x-ratelimit-remaining")?, 0);
    }
    assert_eq!(envoy.served(), 0);

    // A client's own word for its account counts for nothing.
    for header_and_value in [("accept", "*/*"), ("authorization", "Bearer a.b.c"), ("x-account", "eco_free")]
    {
        let passed = envoy.by_client(header_and_value.0, header_and_value.1).await?;
        assert_eq!(passed.status(), StatusCode::OK, "{header_and_value:?}");
        assert_eq!(header(&passed, "x-ratelimit-limit"), None);
        assert_eq!(passed.json::<Value>().await?, json!([]), "no admission goes upstream");
    }
    assert_eq!(number(&envoy.by_service("eco_free").await?, "x-ratelimit-remaining")?, 999);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_passes_envoy_while_usage_svc_is_away() -> Result<()> {
    let mut suite = Suite::start().await?;
    let key = suite.account("eco_free", Plan::Free).await?;
    let envoy = Envoy::start(&suite.servers["usage"].main, &[]).await?;
    assert_eq!(envoy.by_client("x-api-key", &key).await?.status(), StatusCode::OK);
    suite.servers.remove("usage").context("running")?.child.kill().await?;
    assert_eq!(envoy.by_client("x-api-key", &key).await?.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(envoy.by_client("accept", "*/*").await?.status(), StatusCode::OK, "nobody has to be asked");
    assert_eq!(envoy.served(), 2);
    Ok(())
}

/// With the lines for TLS in the example's configuration taken in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_asks_over_tls_whom_it_trusts() -> Result<()> {
    let db = nexus_testkit::db::TestDb::new().await?;
    let period = Utc::now() - TimeDelta::days(10);
    seed::account(&db.pool, "eco_pro", nexus_core::plan::Plan::Pro, period).await?;
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kit/tests/it/keys");
    let key = |name: &str| keys.join(name).display().to_string();
    let mut env = server_env(&db);
    env.extend([("TLS_CERT", key("server.pem")), ("TLS_KEY", key("server.key"))]);
    let usage = Server::start("usage", "USAGE_GRPC_ADDR", "USAGE_METRICS_ADDR", &env).await?;
    for (ca, expected) in [("ca.pem", StatusCode::OK), ("other-ca.pem", StatusCode::SERVICE_UNAVAILABLE)] {
        let tls = [("#tls ", ""), ("/etc/nexus/ca.pem", key(ca).as_str())].map(|(a, b)| (a, b.to_owned()));
        let tls = tls.each_ref().map(|(a, b)| (*a, b.as_str()));
        let envoy = Envoy::start(&usage.main, &tls).await?;
        assert_eq!(envoy.by_service("eco_pro").await?.status(), expected, "{ca}");
    }
    Ok(())
}
