//! The server under test, its clients, its stand-in Stripe.

use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use http_body_util::BodyExt;
use hyper::{Method, Request};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use nexus_billing::config::{Config, StripeArgs};
use nexus_client::CallOptions;
use nexus_kit::{auth::Scope, convert::datetime, serve::Listeners};
use nexus_proto::{
    billing::v1::{
        ChangePlanRequest, ChangePlanResponse, GetOverageRequest, GetOverageResponse,
        HandleStripeEventRequest, HandleStripeEventResponse, ProcessOverageRequest, ProcessOverageResponse,
        ReconcileRequest, ReconcileResponse, billing_service_client::BillingServiceClient,
    },
    common::v1::Plan,
};
use nexus_testkit::{db::TestDb, seed, settings};
use serde_json::{Value, json};
use stripe_webhook::Webhook;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt;

pub(crate) const DEADLINE: Duration = Duration::from_secs(25);
pub(crate) const STRIPE_KEY: &str = "sk_test_billing";
pub(crate) const WEBHOOK_SECRET: &str = "whsec_billing";
/// All of Stripe's events that came are processed, and what they ended is cleared.
pub(crate) const NONE_WAITS: &str =
    "select not exists (select from eco_stripe_events where processed_time is null)
        and not exists (select from eco_ended_subscriptions where cleared_time is null)";
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// A running billing-svc.
pub(crate) struct Billing {
    pub(crate) client: BillingServiceClient<Channel>,
    pub(crate) shutdown: CancellationToken,
    operations: String,
    server: JoinHandle<Result<(), nexus_billing::StartError>>,
}

/// Settings that lead to this database and this Stripe.
pub(crate) fn config(db: &TestDb, stripe: &str) -> Config {
    Config {
        grpc_addr: settings::ANY_PORT,
        metrics_addr: settings::ANY_PORT,
        auth: settings::auth_args(),
        serve: settings::serve_args(),
        db: db.args(),
        stripe: stripe_args(stripe),
        stripe_webhook_secret: Some(WEBHOOK_SECRET.into()),
        overage_concurrency: 8,
        overage_recheck_every: Duration::from_secs(86_400),
        stripe_events_concurrency: 4,
        dashboard_url: "http://localhost:8080/dashboard/billing".to_owned(),
        notify: nexus_billing::config::NotifyArgs::default(),
    }
}

/// Settings of a Stripe at this address.
pub(crate) fn stripe_args(base: &str) -> StripeArgs {
    StripeArgs {
        stripe_secret_key: STRIPE_KEY.into(),
        stripe_api_base: base.to_owned(),
        stripe_rate_per_second: const { std::num::NonZeroU32::new(10_000).expect("not zero") },
        stripe_timeout: Duration::from_secs(20),
        stripe_proration: nexus_billing::config::Proration::None,
    }
}

impl Billing {
    pub(crate) async fn start(db: &TestDb, stripe: &str) -> Result<Self> {
        Self::start_with(config(db, stripe)).await
    }

    pub(crate) async fn start_with(config: Config) -> Result<Self> {
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let address = listeners.main_addr()?;
        let operations = format!("http://{}", listeners.operations_addr()?);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(nexus_billing::serve(config, listeners, shutdown.clone()));
        let client = nexus_client::billing(nexus_client::channel(&format!("http://{address}"))?);
        Ok(Self { client, shutdown, operations, server })
    }

    /// Stops it as SIGTERM does.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        Ok(self.server.await??)
    }

    /// Ends it as SIGKILL does: nothing of it runs on.
    pub(crate) async fn kill(self) -> Result<()> {
        self.server.abort();
        ensure!(self.server.await.is_err_and(|e| e.is_cancelled()), "the server had ended before");
        Ok(())
    }

    pub(crate) async fn run(&self, request: ProcessOverageRequest) -> Result<ProcessOverageResponse> {
        Ok(self.client.clone().process_overage(runner()?.request(request)).await?.into_inner())
    }

    pub(crate) async fn run_all(&self) -> Result<ProcessOverageResponse> {
        self.run(ProcessOverageRequest::default()).await
    }

    /// What Prometheus scrapes.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let url = format!("{}/metrics", self.operations);
        Ok(nexus_testkit::http::client().get(url).send().await?.text().await?)
    }

    pub(crate) async fn reconcile(&self, request: ReconcileRequest) -> Result<ReconcileResponse> {
        Ok(self.client.clone().reconcile(runner()?.request(request)).await?.into_inner())
    }

    /// What a reconciliation has found at its end: repeats of the request wait for that, however long it takes.
    pub(crate) async fn reconciled(&self, request: ReconcileRequest) -> Result<ReconcileResponse> {
        loop {
            let found = self.reconcile(request.clone()).await?;
            ensure!(!found.already_running, "another one is at work: {found:?}");
            if !found.running {
                return Ok(found);
            }
        }
    }

    /// The differences that a reconciliation of everything finds: account and kind.
    pub(crate) async fn differences(&self, repair: bool) -> Result<Vec<(String, String)>> {
        let found = self.reconcile(ReconcileRequest { repair, ..Default::default() }).await?;
        ensure!(!found.running && !found.already_running, "{found:?}");
        assert_eq!(found.differences_count, found.differences.len() as i64);
        Ok(found.differences.into_iter().map(|d| (d.eco_id, d.kind)).collect())
    }

    pub(crate) async fn overage(&self, eco_id: &str) -> Result<GetOverageResponse> {
        let request = GetOverageRequest { eco_id: eco_id.to_owned() };
        Ok(self.client.clone().get_overage(runner()?.request(request)).await?.into_inner())
    }
}

impl Billing {
    /// Sends an event as Stripe does, signed.
    pub(crate) async fn event(&self, event: &Value) -> Result<HandleStripeEventResponse> {
        let payload = event.to_string();
        let signature = signed(&payload);
        let request = HandleStripeEventRequest { payload: payload.into(), signature };
        Ok(self.client.clone().handle_stripe_event(runner()?.request(request)).await?.into_inner())
    }

    /// Asks for a change of an account's plan.
    pub(crate) async fn change(&self, request: ChangePlanRequest) -> Result<Result<PlanAnswer, Status>> {
        let answer = self.client.clone().change_plan(manager()?.request(request)).await;
        Ok(match answer.map(|answer| answer.into_inner()) {
            Ok(ChangePlanResponse { account, apply_time }) => {
                let (account, apply_time) =
                    (account.context("an account")?, apply_time.context("apply_time")?);
                Ok(PlanAnswer {
                    plan: account.plan(),
                    apply_time: datetime(&apply_time).map_err(Error::msg)?,
                })
            }
            Err(status) => Err(status),
        })
    }
}

/// What an answer to a change of plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanAnswer {
    pub(crate) plan: Plan,
    pub(crate) apply_time: DateTime<Utc>,
}

/// The fields of a `BadRequest`.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|b| b.field_violations.clone()).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

/// An event of Stripe's.
pub(crate) fn event(id: &str, kind: &str, object: Value) -> Value {
    json!({ "id": id, "object": "event", "type": kind, "created": Utc::now().timestamp(), "data": { "object": object } })
}

/// The header that Stripe sends with a body.
pub(crate) fn signed(body: &str) -> String {
    Webhook::generate_test_header(body, WEBHOOK_SECRET, None)
}

/// The scheduler.
pub(crate) fn runner() -> Result<CallOptions> {
    Ok(CallOptions::bearer(&settings::service_token(&[Scope::BillingRun])?, DEADLINE)?)
}

/// Whoever manages accounts.
pub(crate) fn manager() -> Result<CallOptions> {
    Ok(CallOptions::bearer(&settings::service_token(&[Scope::AccountsWrite])?, DEADLINE)?)
}

/// A user.
pub(crate) fn user(eco_id: &str) -> Result<CallOptions> {
    Ok(CallOptions::bearer(&settings::user_token(eco_id)?, DEADLINE)?)
}

/// Records units in an account's current period, as a flush does.
pub(crate) async fn record(db: &TestDb, eco_id: &str, units: i64) -> Result<()> {
    sqlx::query("select increment_api_calls($1, $2)").bind(eco_id).bind(units).execute(&db.pool).await?;
    Ok(())
}

/// Records units as a flush does, with an event in the raw log.
pub(crate) async fn meter(db: &TestDb, eco_id: &str, units: i64) -> Result<()> {
    let mut transaction = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query(
        "insert into eco_api_usage (event_id, eco_id, event_day, event_time, period_start, segment, units_count, endpoint,
                                    method, status_code, response_time_ms, test_mode, late)
         select gen_random_uuid(), eco_id, (now() at time zone 'UTC')::date, now(), nexus_period_start(anchor_time, now()),
                0, $2, '/v1/x', 'GET', 200, 10, false, false
         from eco_subscriptions where eco_id = $1",
    )
    .bind(eco_id)
    .bind(units)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("select increment_api_calls($1, $2)")
        .bind(eco_id)
        .bind(units)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}

/// Records units in any period.
pub(crate) async fn record_at(
    db: &TestDb,
    eco_id: &str,
    period_start: DateTime<Utc>,
    units: i64,
) -> Result<()> {
    sqlx::query(
        "select increment_api_calls(array[$1], array[$2], array[0], 1::smallint, array[$3], array[$3],
                                    array[0::bigint], array[$2])",
    )
    .bind(eco_id)
    .bind(period_start)
    .bind(units)
    .execute(&db.pool)
    .await?;
    Ok(())
}

/// An anchor a few days back, so that the current period began then.
pub(crate) fn anchor() -> DateTime<Utc> {
    Utc::now() - TimeDelta::days(3)
}

/// A stand-in Stripe over HTTP.
pub(crate) struct Sim {
    pub(crate) base: String,
    http: Client<HttpConnector, String>,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), stripe_sim::Error>>,
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.server.abort();
    }
}

impl Sim {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let shutdown = CancellationToken::new();
        let server =
            tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, shutdown.clone()));
        let http = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { base, http, shutdown, server })
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: String,
    ) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {STRIPE_KEY}"))
            .header("content-type", content_type)
            .body(body)?;
        let response = self.http.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// Creates an object of Stripe's and returns its id.
    pub(crate) async fn create(&self, path: &str, form: &str) -> Result<String> {
        let object = self.call(Method::POST, &format!("/v1/{path}"), FORM, form.to_owned()).await?;
        Ok(object["id"].as_str().context("an id")?.to_owned())
    }

    /// Deletes an object of Stripe's.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, &format!("/v1/{path}"), FORM, String::new()).await
    }

    pub(crate) async fn customer(&self) -> Result<String> {
        self.create("customers", "email=a%40example.com").await
    }

    /// Puts all pending items of a customer on a finalised invoice.
    pub(crate) async fn invoice(&self, customer: &str) -> Result<()> {
        let form = format!("customer={customer}&pending_invoice_items_behavior=include");
        let invoice = self.create("invoices", &form).await?;
        self.create(&format!("invoices/{invoice}/finalize"), "").await?;
        Ok(())
    }

    pub(crate) async fn subscription(&self, customer: &str) -> Result<String> {
        let price = "currency=usd&unit_amount=4900&recurring[interval]=month&product_data[name]=Pro";
        let price = self.create("prices", price).await?;
        self.create("subscriptions", &format!("customer={customer}&items[0][price]={price}")).await
    }

    /// A call to the part that only the stand-in has.
    pub(crate) async fn admin(&self, path: &str, body: Value) -> Result<Value> {
        self.call(Method::POST, &format!("/_sim{path}"), "application/json", body.to_string()).await
    }

    pub(crate) async fn read(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, &format!("/_sim{path}"), "application/json", String::new()).await
    }

    /// The next request that creates an item goes wrong.
    pub(crate) async fn fault(&self, mut fault: Value) -> Result<()> {
        fault["method"] = "POST".into();
        fault["path"] = "/v1/invoiceitems".into();
        self.admin("/faults", fault).await?;
        Ok(())
    }

    /// All invoice items, oldest first.
    pub(crate) async fn items(&self) -> Result<Vec<Value>> {
        let state = self.read("/state").await?;
        Ok(state["invoiceitems"].as_array().context("invoiceitems")?.clone())
    }

    /// Amounts of all invoice items, in cents, oldest first.
    pub(crate) async fn amounts(&self) -> Result<Vec<i64>> {
        self.items().await?.iter().map(|item| item["amount"].as_i64().context("amount")).collect()
    }

    /// A pro account with a customer here.
    pub(crate) async fn pro(&self, db: &TestDb, eco_id: &str) -> Result<String> {
        let customer = self.customer().await?;
        seed::account(&db.pool, eco_id, nexus_core::plan::Plan::Pro, anchor()).await?;
        seed::stripe_ids(&db.pool, eco_id, &customer, None).await?;
        Ok(customer)
    }
}

/// Waits until a query answers true; tests have no other way to see a background task's work. The deadline is only for
/// what never comes: on a machine that others use, too, what comes may take many times as long as alone.
pub(crate) async fn until(db: &TestDb, query: &'static str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if sqlx::query_scalar::<_, bool>(query).fetch_one(&db.pool).await? {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "never became true: {query}");
        tokio::task::yield_now().await;
    }
}

/// A run that is called for by a task of its own.
pub(crate) fn begin(billing: &Billing) -> JoinHandle<Result<ProcessOverageResponse>> {
    begin_with(billing, ProcessOverageRequest::default())
}

pub(crate) fn begin_with(
    billing: &Billing,
    request: ProcessOverageRequest,
) -> JoinHandle<Result<ProcessOverageResponse>> {
    let mut client = billing.client.clone();
    tokio::spawn(async move { Ok(client.process_overage(runner()?.request(request)).await?.into_inner()) })
}

/// Waits until nobody has the lease of a run: that of a killed server ends with its connection.
pub(crate) async fn lease_is_free(db: &TestDb) -> Result<()> {
    until(
        db,
        "select not exists (select from pg_locks where locktype = 'advisory' and objid = 2 and objsubid = 2
         and database = (select oid from pg_database where datname = current_database()))",
    )
    .await
}

/// A run limited to one account.
pub(crate) fn only(eco_id: &str) -> ProcessOverageRequest {
    ProcessOverageRequest { account_ids: vec![eco_id.to_owned()], ..Default::default() }
}
