//! Everything that runs in a test.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, config::DbArgs, convert::timestamp, serve::Listeners};
use nexus_proto::usage::v1::{
    BatchRecordUsageRequest, CreateApiKeyRequest, UsageEvent, usage_service_client::UsageServiceClient,
};
use nexus_testkit::{
    db::TestDb,
    proxy::Proxy,
    seed,
    settings::{self, ANY_PORT, service_token, user_token},
};
use tokio::{net::TcpListener, sync::Mutex, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::answer::Answer;

pub(crate) const CRON_SECRET: &str = "cron-secret-in-tests-0123456789abcdef";
const STRIPE_KEY: &str = "sk_test_gateway";
pub(crate) const WEBHOOK_SECRET: &str = "whsec_gateway";
const TIMEOUT: Duration = Duration::from_secs(20);

/// A server of ours, running in this process.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Running {
    fn start<E>(server: impl FnOnce(CancellationToken) -> E) -> Self
    where
        E: Future<Output = Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(server(stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?
    }
}

/// The gateway, the services behind it, Stripe and the database.
pub(crate) struct Suite {
    pub(crate) db: TestDb,
    pub(crate) gateway: String,
    pub(crate) operations: String,
    /// usage-svc, billing-svc, analytics-svc.
    pub(crate) services: [SocketAddr; 3],
    stripe: String,
    http: reqwest::Client,
    usage_client: UsageServiceClient<Channel>,
    database: Proxy,
    usage_link: Proxy,
    usage: Option<Running>,
    billing: Option<Running>,
    analytics: Option<Running>,
    serving: Mutex<Option<JoinHandle<Result<(), nexus_gateway::StartError>>>>,
    stop: CancellationToken,
    _others: [DropGuard; 2],
}

impl Suite {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// With other settings of the gateway.
    pub(crate) async fn start_with(change: impl FnOnce(&mut nexus_gateway::Config)) -> Result<Self> {
        Self::start_on(TestDb::new().await?, change).await
    }

    /// On this database.
    pub(crate) async fn start_on(
        db: TestDb,
        change: impl FnOnce(&mut nexus_gateway::Config),
    ) -> Result<Self> {
        let database = Proxy::before(&db).await?;
        let db_args = database.args(&db)?;
        let (stripe, stripe_stop) = stripe().await?;
        let (usage_addr, usage) = usage(db_args.clone()).await?;
        let usage_link = Proxy::before_tcp(usage_addr).await?;
        let (billing_addr, billing) = billing(db_args.clone(), stripe.clone()).await?;
        let (analytics_addr, analytics) = analytics(db_args).await?;
        let mut config = nexus_gateway::Config {
            http_addr: ANY_PORT,
            metrics_addr: ANY_PORT,
            usage_addr: format!("http://{}", usage_link.address()),
            billing_addr: format!("http://{billing_addr}"),
            analytics_addr: format!("http://{analytics_addr}"),
            backend_timeout: Duration::from_secs(5),
            cron_timeout: Duration::from_secs(55),
            tls_ca: None,
            cron_secret: Some(CRON_SECRET.into()),
            cors_allowed_origins: Default::default(),
            // As many as they like: a test is no person.
            account_rate_per_second: 0,
            address_rate_per_second: 0,
            trusted_proxies: Default::default(),
            pages: nexus_gateway::pages::config::PagesArgs::default(),
            auth: settings::auth_args(),
            serve: settings::serve_args(),
        };
        change(&mut config);
        let listeners = Listeners::bind(config.http_addr, config.metrics_addr).await?;
        let gateway = format!("http://{}", listeners.main_addr()?);
        let operations = format!("http://{}", listeners.operations_addr()?);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(nexus_gateway::serve(config, listeners, stop.clone()));
        Ok(Self {
            db,
            gateway,
            operations,
            services: [usage_addr, billing_addr, analytics_addr],
            stripe,
            http: nexus_testkit::http::client(),
            usage_client: nexus_client::usage(nexus_client::channel(&format!("http://{usage_addr}"))?),
            database,
            usage_link,
            usage: Some(usage),
            billing: Some(billing),
            analytics: Some(analytics),
            serving: Mutex::new(Some(serving)),
            stop: stop.clone(),
            _others: [stripe_stop.drop_guard(), stop.drop_guard()],
        })
    }

    pub(crate) fn cut_database(&self) {
        self.database.cut();
    }

    pub(crate) fn mend_database(&self) {
        self.database.mend();
    }

    /// Cuts the gateway off from usage-svc, which runs on.
    pub(crate) fn cut_usage(&self) {
        self.usage_link.cut();
    }

    pub(crate) fn mend_usage(&self) {
        self.usage_link.mend();
    }

    /// Stops the gateway and waits until it has ended by itself.
    pub(crate) async fn drain_gateway(&self) -> Result<()> {
        self.stop.cancel();
        let serving = self.serving.lock().await.take().context("the gateway was stopped before")?;
        Ok(serving.await??)
    }

    pub(crate) async fn stop_usage(&mut self) -> Result<()> {
        self.usage.take().context("usage-svc was stopped before")?.stop().await
    }

    pub(crate) async fn stop_billing(&mut self) -> Result<()> {
        self.billing.take().context("billing-svc was stopped before")?.stop().await
    }

    pub(crate) async fn stop_analytics(&mut self) -> Result<()> {
        self.analytics.take().context("analytics-svc was stopped before")?.stop().await
    }

    /// A request to be completed and sent.
    pub(crate) fn request(&self, method: &str, path: &str) -> Result<reqwest::RequestBuilder> {
        Ok(self.http.request(method.parse()?, format!("{}{path}", self.gateway)))
    }

    /// The answer to a GET with these credentials.
    pub(crate) async fn get(&self, path: &str, authorization: &str) -> Result<Answer> {
        Answer::of(self.request("GET", path)?.header("authorization", authorization)).await
    }

    /// The answer to a GET of an account's user.
    pub(crate) async fn get_as(&self, eco_id: &str, path: &str) -> Result<Answer> {
        self.get(path, &format!("Bearer {}", user_token(eco_id)?)).await
    }

    /// The answer to a GET of the admin.
    pub(crate) async fn get_as_admin(&self, path: &str) -> Result<Answer> {
        self.get_as(settings::ADMIN, path).await
    }

    /// The answer to a POST of an account's user.
    pub(crate) async fn post_as(&self, eco_id: &str, path: &str, body: &serde_json::Value) -> Result<Answer> {
        Answer::of(self.request("POST", path)?.bearer_auth(user_token(eco_id)?).json(body)).await
    }

    /// The answer to the scheduler.
    pub(crate) async fn run_overage(&self) -> Result<Answer> {
        Answer::of(self.request("POST", "/api/cron/process-overage")?.bearer_auth(CRON_SECRET)).await
    }

    /// An account whose period began ten days ago.
    pub(crate) async fn account(&self, eco_id: &str, plan: Plan) -> Result<()> {
        seed::account(&self.db.pool, eco_id, plan, Utc::now() - TimeDelta::days(10)).await
    }

    /// Makes a customer at Stripe for an account.
    pub(crate) async fn stripe_customer(&self, eco_id: &str) -> Result<()> {
        let id = self.stripe("customers", &[]).await?;
        seed::stripe_ids(&self.db.pool, eco_id, &id, None).await
    }

    /// Makes an object at Stripe, and returns its id.
    pub(crate) async fn stripe(&self, path: &str, form: &[(&str, &str)]) -> Result<String> {
        let request = self.http.post(format!("{}v1/{path}", self.stripe)).bearer_auth(STRIPE_KEY).form(form);
        let object: serde_json::Value = request.send().await?.error_for_status()?.json().await?;
        Ok(object["id"].as_str().context("an id")?.to_owned())
    }

    /// Has the stand-in Stripe do something; answers with what it says.
    pub(crate) async fn sim(
        &self,
        method: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        let request = self.http.request(method.parse()?, format!("{}_sim{path}", self.stripe)).json(body);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// Goes through a checkout at Stripe, as a customer does.
    pub(crate) async fn go_through(&self, session_id: &str) -> Result<()> {
        let url = format!("{}_sim/checkout/{session_id}/complete", self.stripe);
        self.http.post(url).json(&serde_json::json!({})).send().await?.error_for_status()?;
        Ok(())
    }

    /// Deletes an object at Stripe.
    pub(crate) async fn stripe_delete(&self, path: &str) -> Result<()> {
        let request = self.http.delete(format!("{}v1/{path}", self.stripe)).bearer_auth(STRIPE_KEY);
        request.send().await?.error_for_status()?;
        Ok(())
    }

    /// A key of an account, made by its user: what the client sends.
    pub(crate) async fn api_key(&self, eco_id: &str, test_mode: bool) -> Result<String> {
        let message = CreateApiKeyRequest { name: "tests".to_owned(), test_mode, ..Default::default() };
        let options = CallOptions::bearer(&user_token(eco_id)?, TIMEOUT)?;
        let made = self.usage_client.clone().create_api_key(options.request(message)).await?.into_inner();
        Ok(format!("ApiKey {}", made.key))
    }

    /// Records events of now; `units_count` of each is what the caller gave.
    pub(crate) async fn record(&self, events: Vec<UsageEvent>) -> Result<()> {
        let wanted = i32::try_from(events.len())?;
        let options = CallOptions::bearer(&service_token(&[Scope::UsageWrite])?, TIMEOUT)?;
        let request = options.request(BatchRecordUsageRequest { events });
        let answer = self.usage_client.clone().batch_record_usage(request).await?.into_inner();
        anyhow::ensure!(answer.accepted_count == wanted, "{:?}", answer.results);
        Ok(())
    }

    /// Asks until the answer is as wished: figures that are brought up to date in the background.
    pub(crate) async fn until(
        &self,
        ask: impl AsyncFn(&Self) -> Result<Answer>,
        wished: impl Fn(&Answer) -> bool,
    ) -> Result<Answer> {
        let asking = async {
            loop {
                let answer = ask(self).await?;
                if wished(&answer) {
                    return anyhow::Ok(answer);
                }
            }
        };
        tokio::time::timeout(TIMEOUT, asking).await.context("the answer never came")?
    }
}

/// An event of now.
pub(crate) fn event(eco_id: &str, endpoint: &str, status_code: i32, units_count: i64) -> UsageEvent {
    event_at(eco_id, endpoint, status_code, units_count, Utc::now())
}

pub(crate) fn event_at(
    eco_id: &str,
    endpoint: &str,
    status_code: i32,
    units_count: i64,
    at: DateTime<Utc>,
) -> UsageEvent {
    UsageEvent {
        eco_id: eco_id.to_owned(),
        event_id: Uuid::now_v7().to_string(),
        event_time: Some(timestamp(at)),
        endpoint: endpoint.to_owned(),
        method: "GET".to_owned(),
        status_code,
        response_time_ms: 150,
        units_count,
        ..Default::default()
    }
}

async fn stripe() -> Result<(String, CancellationToken)> {
    let listener = TcpListener::bind(ANY_PORT).await?;
    let address = format!("http://{}/", listener.local_addr()?);
    let stop = CancellationToken::new();
    tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));
    Ok((address, stop))
}

async fn usage(db: DbArgs) -> Result<(SocketAddr, Running)> {
    let config = nexus_usage::Config {
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
        db,
    };
    let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
    let address = listeners.main_addr()?;
    Ok((address, Running::start(|stop| async { Ok(nexus_usage::serve(config, listeners, stop).await?) })))
}

async fn billing(db: DbArgs, stripe: String) -> Result<(SocketAddr, Running)> {
    let config = nexus_billing::Config {
        grpc_addr: ANY_PORT,
        metrics_addr: ANY_PORT,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db,
        stripe: nexus_billing::config::StripeArgs {
            stripe_secret_key: STRIPE_KEY.into(),
            stripe_api_base: stripe,
            stripe_rate_per_second: NonZeroU32::new(1_000).context("a rate")?,
            stripe_timeout: TIMEOUT,
            stripe_proration: nexus_billing::config::Proration::CreateProrations,
        },
        stripe_webhook_secret: Some(WEBHOOK_SECRET.into()),
        overage_concurrency: 4,
        overage_recheck_every: Duration::from_secs(60),
        stripe_events_concurrency: 4,
        dashboard_url: "http://localhost:8080/dashboard/billing".to_owned(),
        notify: nexus_billing::config::NotifyArgs::default(),
    };
    let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
    let address = listeners.main_addr()?;
    Ok((address, Running::start(|stop| async { Ok(nexus_billing::serve(config, listeners, stop).await?) })))
}

async fn analytics(db: DbArgs) -> Result<(SocketAddr, Running)> {
    let config = nexus_analytics::Config {
        grpc_addr: ANY_PORT,
        metrics_addr: ANY_PORT,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db,
    };
    let listeners = Listeners::bind(ANY_PORT, ANY_PORT).await?;
    let address = listeners.main_addr()?;
    Ok((address, Running::start(|stop| async { Ok(nexus_analytics::serve(config, listeners, stop).await?) })))
}
