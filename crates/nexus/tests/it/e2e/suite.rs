//! The suite as an operator runs it: four processes of the one binary, each with its own environment.

use std::{collections::HashMap, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nexus_kit::auth::Scope;
use nexus_proto::{
    billing::v1::{CreateAccountRequest, billing_service_client::BillingServiceClient},
    common::v1::Plan,
    usage::v1::{CreateApiKeyRequest, UsageEvent, usage_service_client::UsageServiceClient},
};
use nexus_testkit::{
    db::TestDb,
    settings::{ADMIN, ANY_PORT, JWT_SECRET, SERVICE_TOKEN_SECRET, service_token},
};
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use uuid::Uuid;

pub(super) const CRON_SECRET: &str = "cron-secret-in-tests-0123456789abcdef";
const STRIPE_KEY: &str = "sk_test_e2e";

/// A server process; killed when dropped.
pub(super) struct Server {
    pub(super) child: Child,
    /// Address of its main port.
    pub(super) main: String,
}

pub(super) struct Suite {
    pub(super) db: TestDb,
    pub(super) servers: HashMap<&'static str, Server>,
    pub(super) stripe: String,
    pub(super) gateway: String,
    pub(super) http: Client,
    token: String,
    _stripe: DropGuard,
}

impl Suite {
    pub(super) async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// With more environment for every server.
    pub(super) async fn start_with(more: &[(&'static str, &str)]) -> Result<Self> {
        let db = TestDb::new().await?;
        let listener = TcpListener::bind(ANY_PORT).await?;
        let stripe = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));

        let mut env = server_env(&db);
        env.extend([
            ("CRON_SECRET", CRON_SECRET.into()),
            ("STRIPE_SECRET_KEY", STRIPE_KEY.into()),
            ("STRIPE_API_BASE", stripe.clone()),
        ]);
        env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let mut servers = HashMap::new();
        for (name, prefix) in [("usage", "USAGE"), ("billing", "BILLING"), ("analytics", "ANALYTICS")] {
            let server =
                Server::start(name, &format!("{prefix}_GRPC_ADDR"), &format!("{prefix}_METRICS_ADDR"), &env)
                    .await?;
            servers.insert(name, server);
        }
        for (name, variable) in
            [("usage", "USAGE_ADDR"), ("billing", "BILLING_ADDR"), ("analytics", "ANALYTICS_ADDR")]
        {
            env.insert(variable, format!("http://{}", servers[name].main));
        }
        let gateway = Server::start("gateway", "GATEWAY_HTTP_ADDR", "GATEWAY_METRICS_ADDR", &env).await?;
        let gateway_url = format!("http://{}", gateway.main);
        servers.insert("gateway", gateway);
        let scopes = [Scope::UsageWrite, Scope::UsageCheck, Scope::AccountsWrite, Scope::BillingRun];
        Ok(Self {
            db,
            servers,
            stripe,
            gateway: gateway_url,
            http: nexus_testkit::http::client(),
            token: service_token(&scopes)?,
            _stripe: stop.drop_guard(),
        })
    }

    pub(super) fn request<T>(&self, message: T) -> Result<tonic::Request<T>> {
        Ok(nexus_client::CallOptions::bearer(&self.token, Duration::from_secs(30))?.request(message))
    }

    fn channel(&self, server: &str) -> Result<Channel> {
        Ok(nexus_client::channel(&format!("http://{}", self.servers[server].main))?)
    }

    pub(super) fn usage(&self) -> Result<UsageServiceClient<Channel>> {
        Ok(nexus_client::usage(self.channel("usage")?))
    }

    pub(super) fn billing(&self) -> Result<BillingServiceClient<Channel>> {
        Ok(nexus_client::billing(self.channel("billing")?))
    }

    /// An account with an API key; with a customer and a subscription at Stripe if it pays.
    pub(super) async fn account(&self, eco_id: &str, plan: Plan) -> Result<String> {
        let (customer, subscription) =
            if plan == Plan::Free { Default::default() } else { self.subscribe(eco_id).await? };
        let request = CreateAccountRequest {
            eco_id: eco_id.to_owned(),
            email: format!("{eco_id}@example.com"),
            plan: plan.into(),
            stripe_customer_id: customer,
            stripe_subscription_id: subscription,
            ..Default::default()
        };
        self.billing()?.create_account(self.request(request)?).await?;
        let request =
            CreateApiKeyRequest { eco_id: eco_id.to_owned(), name: "e2e".into(), ..Default::default() };
        Ok(self.usage()?.create_api_key(self.request(request)?).await?.into_inner().key)
    }

    async fn subscribe(&self, eco_id: &str) -> Result<(String, String)> {
        let customer =
            self.stripe_post("/v1/customers", &[("email", format!("{eco_id}@example.com").as_str())]).await?;
        let product = self.stripe_post("/v1/products", &[("name", "Pro")]).await?;
        let price = [
            ("currency", "usd"),
            ("unit_amount", "4900"),
            ("recurring[interval]", "month"),
            ("product", id(&product)?),
            ("lookup_key", "pro"),
        ];
        let price = self.stripe_post("/v1/prices", &price).await?;
        let subscription = [("customer", id(&customer)?), ("items[0][price]", id(&price)?)];
        let subscription = self.stripe_post("/v1/subscriptions", &subscription).await?;
        Ok((id(&customer)?.to_owned(), id(&subscription)?.to_owned()))
    }

    async fn stripe_post(&self, path: &str, form: &[(&str, &str)]) -> Result<Value> {
        let url = format!("{}{path}", self.stripe);
        let answer = self.http.post(url).bearer_auth(STRIPE_KEY).form(form).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        ensure!(status.is_success(), "{path}: {status} {body}");
        Ok(body)
    }

    /// The invoice items that Stripe holds, oldest first.
    pub(super) async fn stripe_items(&self) -> Result<Vec<Value>> {
        let url = format!("{}/v1/invoiceitems?limit=100", self.stripe);
        let body: Value = self.http.get(url).bearer_auth(STRIPE_KEY).send().await?.json().await?;
        let mut items = body["data"].as_array().context("a list")?.clone();
        items.reverse();
        Ok(items)
    }

    pub(super) async fn get(&self, path: &str, authorization: &str) -> Result<Response> {
        let url = format!("{}{path}", self.gateway);
        Ok(self.http.get(url).header("authorization", authorization).send().await?)
    }

    pub(super) async fn get_json(&self, path: &str, authorization: &str) -> Result<Value> {
        let answer = self.get(path, authorization).await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(body)
    }

    pub(super) async fn process_overage(&self) -> Result<Value> {
        let url = format!("{}/api/cron/process-overage", self.gateway);
        let answer = self.http.post(url).bearer_auth(CRON_SECRET).send().await?;
        ensure!(answer.status() == 200, "{answer:?}");
        Ok(answer.json().await?)
    }
}

/// What every server is told.
pub(super) fn server_env(db: &TestDb) -> HashMap<&'static str, String> {
    HashMap::from([
        ("JWT_SECRET", JWT_SECRET.into()),
        ("SERVICE_TOKEN_SECRET", SERVICE_TOKEN_SECRET.into()),
        ("ADMIN_ECO_IDS", ADMIN.into()),
        ("DATABASE_URL", db.url().into()),
    ])
}

impl Server {
    pub(super) async fn start(
        command: &'static str,
        main_var: &str,
        operations_var: &str,
        env: &HashMap<&str, String>,
    ) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nexus"))
            .arg(command)
            .env_clear()
            .envs(env)
            .env("OPEN_HEALTH", "true")
            .env("OPEN_REFLECTION", "true")
            .env(main_var, ANY_PORT.to_string())
            .env(operations_var, ANY_PORT.to_string())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        let mut log = Vec::new();
        while let Some(line) = lines.next_line().await? {
            log.push(line.clone());
            let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
            if entry["message"] != "listening" {
                continue;
            }
            let main = entry["main"].as_str().context("an address")?.to_owned();
            // Read on, so that the server never waits for its log to be read.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(Self { child, main });
        }
        bail!("nexus {command} ended before it listened:\n{}", log.join("\n"))
    }
}

pub(super) fn id(object: &Value) -> Result<&str> {
    object["id"].as_str().with_context(|| format!("no id: {object}"))
}

/// An event of now.
pub(super) fn event(eco_id: &str, units: i64) -> UsageEvent {
    UsageEvent {
        eco_id: eco_id.to_owned(),
        event_id: Uuid::now_v7().to_string(),
        endpoint: "/v1/reports".into(),
        method: "GET".into(),
        status_code: 200,
        response_time_ms: 12,
        units_count: units,
        ..Default::default()
    }
}
