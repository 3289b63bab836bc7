//! A server under test, its callers, and what the database says afterwards.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use futures::future::join_all;
use nexus_client::CallOptions;
use nexus_core::plan::Plan;
use nexus_kit::{auth::Scope, config::DbArgs, convert::timestamp, serve::Listeners};
use nexus_proto::usage::v1::{usage_service_client::UsageServiceClient, *};
use nexus_testkit::{
    db::TestDb,
    http, seed,
    settings::{self, ANY_PORT},
};
use nexus_usage::{Config, StartError};
use sqlx::PgPool;
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of a usage-svc on free ports.
pub(crate) fn config(db: DbArgs) -> Config {
    Config {
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
    }
}

/// A usage-svc of its own; stops when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    operations: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), StartError>>,
    /// What it runs on alone, where it can be killed.
    runtime: Option<Runtime>,
}

impl Server {
    pub(crate) async fn start(db: DbArgs) -> Result<Self> {
        Self::start_with(config(db)).await
    }

    pub(crate) async fn start_with(config: Config) -> Result<Self> {
        let listeners = Listeners::bind(config.grpc_addr, config.metrics_addr).await?;
        let (address, operations) = (listeners.main_addr()?, listeners.operations_addr()?);
        let stop = CancellationToken::new();
        let task = tokio::spawn(nexus_usage::serve(config, listeners, stop.clone()));
        Ok(Self { address, operations, stop, task, runtime: None })
    }

    /// One that can be killed.
    pub(crate) async fn start_apart(db: DbArgs) -> Result<Self> {
        Self::start_apart_with(config(db)).await
    }

    pub(crate) async fn start_apart_with(config: Config) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut server = runtime.spawn(Self::start_with(config)).await??;
        server.runtime = Some(runtime);
        Ok(server)
    }

    /// Ends it at once, whatever it is doing: its connections break, nothing is finished.
    pub(crate) async fn kill(mut self) -> Result<()> {
        let runtime = self.runtime.take().context("it was started apart")?;
        // Waits until its tasks, and so its connections, are gone.
        tokio::task::spawn_blocking(move || drop(runtime)).await?;
        Ok(())
    }

    pub(crate) fn channel(&self) -> Result<Channel> {
        Ok(nexus_client::channel(&format!("http://{}", self.address))?)
    }

    pub(crate) fn client(&self) -> Result<UsageServiceClient<Channel>> {
        Ok(nexus_client::usage(self.channel()?))
    }

    /// One that runs in a process of its own: it ends by other means.
    pub(crate) fn elsewhere(address: SocketAddr, operations: SocketAddr) -> Self {
        let task = tokio::spawn(async { Ok(()) });
        Self { address, operations, stop: CancellationToken::new(), task, runtime: None }
    }

    /// What it says on a path of its operations port, and with which status.
    pub(crate) async fn operations(&self, path: &str) -> Result<(u16, String)> {
        let answer = http::client().get(format!("http://{}{path}", self.operations)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<i64> {
        let (_, metrics) = self.operations("/metrics").await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {name} in {metrics}"))?.parse()?)
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        Ok((&mut self.task).await??)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A database and one server on it. It hears of changes: with that, it gives back what it holds, and a test would not
/// know when.
pub(crate) async fn server() -> Result<(TestDb, Server)> {
    let db = TestDb::new().await?;
    let server = Server::start(db.args()).await?;
    hear(&db, 1).await?;
    Ok((db, server))
}

/// A service that may record and check.
pub(crate) fn service() -> Result<CallOptions> {
    with_scopes(&[Scope::UsageWrite, Scope::UsageCheck])
}

pub(crate) fn with_scopes(scopes: &[Scope]) -> Result<CallOptions> {
    Ok(CallOptions::bearer(&settings::service_token(scopes)?, TIMEOUT)?)
}

pub(crate) fn user(eco_id: &str) -> Result<CallOptions> {
    Ok(CallOptions::bearer(&settings::user_token(eco_id)?, TIMEOUT)?)
}

pub(crate) fn api_key(key: &str) -> Result<CallOptions> {
    Ok(CallOptions::new(&format!("ApiKey {key}"), TIMEOUT)?)
}

/// Now, as the database keeps times.
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// A database whose free plan has so many units, and `eco_a` with that plan.
pub(crate) async fn database(limit: i64) -> Result<TestDb> {
    let db = TestDb::new().await?;
    sqlx::query("update eco_plans set included_units = $1 where plan = 'free'")
        .bind(limit)
        .execute(&db.pool)
        .await?;
    account(&db, "eco_a", Plan::Free).await?;
    Ok(db)
}

/// An account whose period began ten days ago.
pub(crate) async fn account(db: &TestDb, eco_id: &str, plan: Plan) -> Result<()> {
    seed::account(&db.pool, eco_id, plan, now() - TimeDelta::days(10)).await
}

/// An event of now.
pub(crate) fn event(eco_id: &str) -> UsageEvent {
    event_at(eco_id, now())
}

pub(crate) fn event_at(eco_id: &str, at: DateTime<Utc>) -> UsageEvent {
    UsageEvent {
        eco_id: eco_id.to_owned(),
        event_id: Uuid::now_v7().to_string(),
        event_time: Some(timestamp(at)),
        endpoint: "/v1/things/42?page=1".to_owned(),
        method: "get".to_owned(),
        status_code: 200,
        response_time_ms: 7,
        ..UsageEvent::default()
    }
}

/// Makes a key as the account's user.
pub(crate) async fn make_key(server: &Server, eco_id: &str, test_mode: bool) -> Result<CreateApiKeyResponse> {
    let request =
        CreateApiKeyRequest { name: "tests".to_owned(), test_mode, ..CreateApiKeyRequest::default() };
    Ok(server.client()?.create_api_key(user(eco_id)?.request(request)).await?.into_inner())
}

pub(crate) fn key_id(made: &CreateApiKeyResponse) -> String {
    made.api_key.as_ref().map(|key| key.key_id.clone()).unwrap_or_default()
}

/// What verifying a key says.
pub(crate) async fn verify(server: &Server, key: &str) -> Result<Result<VerifyApiKeyResponse, Status>> {
    let request = VerifyApiKeyRequest { key: key.to_owned() };
    Ok(server.client()?.verify_api_key(service()?.request(request)).await.map(|r| r.into_inner()))
}

/// Closes an account.
pub(crate) async fn close(db: &TestDb, eco_id: &str) -> Result<()> {
    let close = "update eco_identities set status = 'closed', closed_time = now() where eco_id = $1";
    sqlx::query(close).bind(eco_id).execute(&db.pool).await?;
    Ok(())
}

pub(crate) async fn record(server: &Server, event: UsageEvent) -> Result<RecordUsageResponse, Status> {
    let options = service().map_err(|e| Status::internal(e.to_string()))?;
    let mut client = server.client().map_err(|e| Status::internal(e.to_string()))?;
    let request = RecordUsageRequest { event: Some(event) };
    Ok(client.record_usage(options.request(request)).await?.into_inner())
}

pub(crate) async fn record_batch(
    server: &Server,
    events: Vec<UsageEvent>,
) -> Result<BatchRecordUsageResponse, Status> {
    let options = service().map_err(|e| Status::internal(e.to_string()))?;
    let mut client = server.client().map_err(|e| Status::internal(e.to_string()))?;
    let request = BatchRecordUsageRequest { events };
    Ok(client.batch_record_usage(options.request(request)).await?.into_inner())
}

pub(crate) async fn check(
    server: &Server,
    eco_id: &str,
    units_count: i64,
) -> Result<CheckQuotaResponse, Status> {
    let options = service().map_err(|e| Status::internal(e.to_string()))?;
    let mut client = server.client().map_err(|e| Status::internal(e.to_string()))?;
    let request = CheckQuotaRequest { eco_id: eco_id.to_owned(), units_count, ..Default::default() };
    Ok(client.check_quota(options.request(request)).await?.into_inner())
}

pub(crate) async fn current(server: &Server, eco_id: &str) -> Result<GetCurrentUsageResponse> {
    let request = GetCurrentUsageRequest { eco_id: eco_id.to_owned() };
    Ok(server.client()?.get_current_usage(service()?.request(request)).await?.into_inner())
}

/// The status of a call that must fail with this code and reason.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = result.expect_err("the call must be refused");
    assert_eq!((status.code(), nexus_kit::status::reason(&status).as_str()), (code, reason), "{status:?}");
    status
}

/// The fields of a `BadRequest`.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    details.bad_request().iter().flat_map(|b| b.field_violations.iter().map(|f| f.field.clone())).collect()
}

/// Returns once a session waits for a lock.
pub(crate) async fn lock_is_waited_for(db: &TestDb) -> Result<()> {
    is_waited_for(db, "true").await
}

/// Returns once a session other than the maintenance waits for a lock; that one waits for rebuilds by itself.
pub(crate) async fn service_waits(db: &TestDb) -> Result<()> {
    let maintenance = "l.locktype = 'advisory' and l.objsubid = 1
        and l.objid::bigint = hashtext('nexus_usage_partitions')::bigint & 4294967295";
    is_waited_for(db, &format!("not ({maintenance})")).await
}

async fn is_waited_for(db: &TestDb, which: &str) -> Result<()> {
    let statement = format!(
        "select exists (select from pg_locks l join pg_database d on d.oid = l.database
                        where d.datname = current_database() and not l.granted and {which})"
    );
    while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(statement.as_str())).fetch_one(&db.pool).await? {
    }
    Ok(())
}

/// Keeps flushes at work until the transaction ends: they wait for the counters.
pub(crate) async fn hold_flushes(db: &TestDb) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut holder = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("lock table eco_usage_counters in share mode").execute(&mut *holder).await?;
    Ok(holder)
}

/// Locks the day, as a rebuild does, until the transaction ends. (Maintenance, which would hold up another, is not.)
pub(crate) async fn hold_day(
    db: &TestDb,
    at: DateTime<Utc>,
) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut rebuild = nexus_kit::db::begin(&db.pool).await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('nexus_usage_day'), $1 - date '2000-01-01')")
        .bind(at.date_naive())
        .execute(&mut *rebuild)
        .await?;
    Ok(rebuild)
}

/// Returns once so many events wait for a rebuild or a change of plan.
pub(crate) async fn set_aside(server: &Server, events: i64) -> Result<()> {
    eventually(async || Ok(server.metric("nexus_usage_set_aside_events").await? == events)).await
}

/// Checks of one unit each, all at once, in turn at these servers; the answers.
pub(crate) async fn burst(
    servers: &[&Server],
    eco_id: &str,
    count: usize,
) -> Result<Vec<Result<CheckQuotaResponse, Status>>> {
    let options = service()?;
    let clients = servers.iter().map(|server| server.client()).collect::<Result<Vec<_>>>()?;
    let calls = (0..count).map(|i| {
        let mut client = clients[i % clients.len()].clone();
        let request =
            options.request(CheckQuotaRequest { eco_id: eco_id.to_owned(), ..CheckQuotaRequest::default() });
        async move { client.check_quota(request).await.map(|answer| answer.into_inner()) }
    });
    Ok(join_all(calls).await)
}

/// Returns once so many servers hear of changes: until then each takes everything as changed.
pub(crate) async fn hear(db: &TestDb, servers: i64) -> Result<()> {
    hear_at(&db.pool, servers).await
}

/// The same of a database that is no test's own.
pub(crate) async fn hear_at(pool: &PgPool, servers: i64) -> Result<()> {
    let beats = "select count(*) from pg_stat_activity
        where datname = current_database() and state = 'idle' and query like 'select pg_notify%'";
    while sqlx::query_scalar::<_, i64>(beats).fetch_one(pool).await? < servers {}
    Ok(())
}

/// No sign of life for long, as far as the database knows.
pub(crate) async fn age_holders(db: &TestDb) -> Result<()> {
    sqlx::query("update eco_quota_holders set heartbeat_time = now() - interval '1 hour'")
        .execute(&db.pool)
        .await?;
    Ok(())
}

/// Units that the database has as granted and not returned.
pub(crate) async fn granted(db: &TestDb, eco_id: &str) -> Result<i64> {
    let statement = "select coalesce(sum(granted_units - returned_units), 0)::bigint from eco_quota_usage where eco_id = $1";
    Ok(sqlx::query_scalar(statement).bind(eco_id).fetch_one(&db.pool).await?)
}

/// Units in the raw log, the counters and both rollups; test-mode units of the first two apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) raw: i64,
    pub(crate) counted: i64,
    pub(crate) hourly: i64,
    pub(crate) daily: i64,
    pub(crate) unadmitted: i64,
    pub(crate) test_raw: i64,
    pub(crate) test_counted: i64,
}

pub(crate) async fn sums(pool: &PgPool, eco_id: &str) -> Result<Sums> {
    let row: (i64, i64, i64, i64, i64, i64, i64) = sqlx::query_as(
        "select coalesce((select sum(units_count) from eco_api_usage where eco_id = $1 and not test_mode), 0)::bigint,
                coalesce((select sum(recorded_units) from eco_usage_counters where eco_id = $1), 0)::bigint,
                coalesce((select sum(units_count) from eco_usage_hourly where eco_id = $1), 0)::bigint,
                coalesce((select sum(units_count) from eco_usage_daily where eco_id = $1), 0)::bigint,
                coalesce((select sum(unadmitted_units) from eco_usage_counters where eco_id = $1), 0)::bigint,
                coalesce((select sum(units_count) from eco_api_usage where eco_id = $1 and test_mode), 0)::bigint,
                coalesce((select sum(test_units) from eco_usage_counters where eco_id = $1), 0)::bigint",
    )
    .bind(eco_id)
    .fetch_one(pool)
    .await
    .context("summing up")?;
    let (raw, counted, hourly, daily, unadmitted, test_raw, test_counted) = row;
    Ok(Sums { raw, counted, hourly, daily, unadmitted, test_raw, test_counted })
}

/// So many units everywhere, none admitted, none of test keys.
pub(crate) fn plain(units: i64) -> Sums {
    Sums {
        raw: units,
        counted: units,
        hourly: units,
        daily: units,
        unadmitted: units,
        test_raw: 0,
        test_counted: 0,
    }
}

/// Both rollups, row by row; a sketch with one entry a bucket.
pub(crate) async fn rollups(db: &TestDb) -> Result<Vec<String>> {
    let rollups = "select row_to_json(r)::text
        from (select eco_id, hour::text as at, route, method, status_class, units_count, event_count, latency_sum_ms,
                     nexus_sketch_compact(sketch) as sketch
              from eco_usage_hourly
              union all
              select eco_id, day::text, route, method, status_class, units_count, event_count, latency_sum_ms,
                     nexus_sketch_compact(sketch)
              from eco_usage_daily
              union all
              select null, day::text, null, null, null, sum(units_count), sum(event_count), sum(latency_sum_ms),
                     array[sum(successful_units), sum(failed_units)]::bigint[]
              from eco_usage_totals
              group by day) as r
        order by 1";
    Ok(sqlx::query_scalar(rollups).fetch_all(&db.pool).await?)
}

/// Returns once a condition holds that other tasks bring about.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) -> Result<()> {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.context("it never came true")
}

/// The same for a condition that is asked of the server or the database.
pub(crate) async fn eventually(mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let wait = async {
        while !holds().await? {}
        Ok(())
    };
    tokio::time::timeout(TIMEOUT, wait).await.context("it never came true")?
}

/// Returns once the server refuses a key that it accepted.
pub(crate) async fn is_refused(server: &Server, key: &str) -> Result<()> {
    eventually(async || match verify(server, key).await? {
        Ok(_) => Ok(false),
        refusal => {
            refused(refusal, Code::Unauthenticated, "INVALID_API_KEY");
            Ok(true)
        }
    })
    .await
}
