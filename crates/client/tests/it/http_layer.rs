//! An axum service within the layer.

use std::{future::pending, net::SocketAddr};

use anyhow::{Context, Result};
use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use nexus_client::{
    MeterLayer, Tracker,
    meter::{Caller, OnTrouble},
};
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, http, settings::ANY_PORT};
use reqwest::Response;
use tokio::{net::TcpListener, sync::Notify, task::yield_now};

use crate::support::*;

/// Whose call it is, and of how many units, its headers say.
fn caller(parts: &axum::http::request::Parts) -> Option<Caller> {
    let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let caller = Caller::new(text("x-account")?);
    Some(match text("x-units").and_then(|units| units.parse().ok()) {
        Some(units) => caller.units(units),
        None => caller,
    })
}

async fn serve(layer: MeterLayer) -> Result<String> {
    let app = Router::new()
        .route("/v1/things/{id}", get(|| async { "a thing" }))
        .route("/v1/things", post(|| async { StatusCode::CREATED }))
        .route("/v1/broken", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/v1/endless", get(endless))
        .route("/v1/panicking", get(panics))
        .layer(layer);
    let listener = TcpListener::bind(ANY_PORT).await?;
    let address: SocketAddr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(format!("http://{address}"))
}

static ENDLESS: Notify = Notify::const_new();

async fn endless() -> StatusCode {
    ENDLESS.notify_one();
    pending().await
}

async fn panics() -> StatusCode {
    panic!("on purpose")
}

async fn call(url: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let mut request = http::client().get(format!("{url}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.send().await?)
}

fn header<'a>(response: &'a Response, name: &str) -> Result<&'a str> {
    Ok(response.headers().get(name).with_context(|| format!("no {name}"))?.to_str()?)
}

struct Metered {
    db: TestDb,
    server: Server,
    tracker: Tracker,
}

impl Metered {
    async fn new(plan: Plan) -> Result<Self> {
        let db = TestDb::new().await?;
        account(&db, "eco_a", plan).await?;
        let server = Server::start(db.args()).await?;
        // With that, it gives back what it holds: a test would not know when.
        hear(&db, 1).await?;
        let tracker = tracker(&server.url())?.build().await?;
        Ok(Self { db, server, tracker })
    }

    fn layer(&self) -> Result<MeterLayer> {
        Ok(MeterLayer::new(self.tracker.clone(), caller).limit(self.server.guard()?))
    }
}

type Row = (String, String, i16, bool, bool);

async fn rows(db: &TestDb) -> Result<Vec<Row>> {
    Ok(sqlx::query_as(
        "select endpoint, method, status_code, admission_id is not null, response_time_ms between 0 and 20000
         from eco_api_usage order by endpoint, status_code",
    )
    .fetch_all(&db.pool)
    .await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_calls_are_recorded_by_route_and_carry_the_quota() -> Result<()> {
    let metered = Metered::new(Plan::Pro).await?;
    let url = serve(metered.layer()?).await?;
    let mine = [("x-account", "eco_a")];
    let first = call(&url, "/v1/things/42?page=1", &mine).await?;
    assert_eq!(
        (header(&first, "x-ratelimit-limit")?, header(&first, "x-ratelimit-remaining")?),
        ("100000", "99999")
    );
    assert!(header(&first, "x-ratelimit-reset")?.ends_with('Z'));
    assert!(header(&first, "ratelimit-policy")?.starts_with("\"pro-monthly\";q=100000;w="));
    assert!(header(&first, "ratelimit")?.starts_with("\"pro-monthly\";r=99999;t="));
    assert_eq!(first.text().await?, "a thing");
    let created = http::client().post(format!("{url}/v1/things")).header("x-account", "eco_a").send().await?;
    assert_eq!(created.status(), 201);
    assert_eq!(call(&url, "/v1/broken", &mine).await?.status(), 503);
    assert_eq!(call(&url, "/v1/things/1", &[]).await?.status(), 200, "nobody's call is not metered");
    metered.tracker.flush().await?;
    let row =
        |endpoint: &str, method: &str, status| (endpoint.to_owned(), method.to_owned(), status, true, true);
    let expected =
        [row("/v1/broken", "GET", 503), row("/v1/things", "POST", 201), row("/v1/things/{id}", "GET", 200)];
    assert_eq!(rows(&metered.db).await?, expected);
    assert_eq!(metered.server.consumed("eco_a").await?, 3, "recording an admitted call consumes once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_recorded_whose_client_does_not_wait_or_whose_handler_panics() -> Result<()> {
    let metered = Metered::new(Plan::Pro).await?;
    let url = serve(metered.layer()?).await?;
    call(&url, "/v1/panicking", &[("x-account", "eco_a")]).await.expect_err("the connection breaks");
    let waits =
        tokio::spawn(http::client().get(format!("{url}/v1/endless")).header("x-account", "eco_a").send());
    ENDLESS.notified().await;
    assert_eq!(metered.tracker.stats().tracked, 1);
    waits.abort();
    while metered.tracker.stats().tracked < 2 {
        yield_now().await;
    }
    metered.tracker.flush().await?;
    let row = |endpoint: &str, status| (endpoint.to_owned(), "GET".to_owned(), status, true, true);
    assert_eq!(rows(&metered.db).await?, [row("/v1/endless", 499), row("/v1/panicking", 500)]);
    assert_eq!(metered.server.consumed("eco_a").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_beyond_the_spend_cap_is_429_and_says_so() -> Result<()> {
    let metered = Metered::new(Plan::Pro).await?;
    sqlx::query("update eco_identities set spend_cap_micros = 10000").execute(&metered.db.pool).await?;
    let url = serve(metered.layer()?).await?;
    let call = async |units| call(&url, "/v1/things/42", &[("x-account", "eco_a"), ("x-units", units)]).await;
    assert_eq!(call("100010").await?.status(), 200);
    let over = call("1").await?;
    assert_eq!((over.status().as_u16(), header(&over, "x-ratelimit-limit")?), (429, "100010"));
    assert!(header(&over, "ratelimit-policy")?.starts_with("\"pro-monthly\";q=100010;w="));
    let body: serde_json::Value = serde_json::from_str(&over.text().await?)?;
    assert_eq!((&body["reason"], &body["limit"]), (&"spend_cap_reached".into(), &100_010.into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_over_the_limit_is_429_and_not_recorded() -> Result<()> {
    let metered = Metered::new(Plan::Free).await?;
    let url = serve(metered.layer()?).await?;
    let call = async |units| call(&url, "/v1/things/42", &[("x-account", "eco_a"), ("x-units", units)]).await;
    assert_eq!(call("990").await?.status(), 200);
    let over = call("11").await?;
    assert_eq!(over.status(), 429);
    assert_eq!(
        (header(&over, "x-ratelimit-limit")?, header(&over, "x-ratelimit-remaining")?),
        ("1000", "10")
    );
    assert!(header(&over, "ratelimit")?.starts_with("\"free-monthly\";r=10;t="));
    let to_reset: u64 = header(&over, "ratelimit")?.rsplit('=').next().context("t")?.parse()?;
    let retry: u64 = header(&over, "retry-after")?.parse()?;
    assert!((to_reset..=to_reset + 60).contains(&retry), "{retry}, {to_reset} to the reset");
    let reset = header(&over, "x-ratelimit-reset")?.to_owned();
    let body: serde_json::Value = serde_json::from_str(&over.text().await?)?;
    let expected = serde_json::json!({
        "error": "API limit exceeded", "message": body["message"], "reason": "plan_limit_reached", "current_usage": 990, "limit": 1000,
        "period_end": reset, "upgrade_url": "/dashboard/billing",
    });
    assert_eq!(body, expected);
    assert_eq!(call("10").await?.status(), 200, "the refused call consumed nothing");
    metered.tracker.flush().await?;
    assert_eq!(counted(&metered.db.pool, "eco_a").await?, Counted { rows: 2, units: 1_000, daily: 1_000 });
    Ok(())
}

/// Most of these calls are admitted from units that the guard holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_holds_units_shows_and_records_the_same() -> Result<()> {
    let metered = Metered::new(Plan::Free).await?;
    let guard = metered.server.guard()?.leased(8);
    let url = serve(MeterLayer::new(metered.tracker.clone(), caller).limit(guard.clone())).await?;
    let (http, mut served) = (http::client(), 0);
    let over = loop {
        let answer = http.get(format!("{url}/v1/things/42")).header("x-account", "eco_a").send().await?;
        // Units that are on their way back may be late on a busy machine: it is told to come back in a moment, and not
        // at the reset, weeks away.
        if answer.status() == 429 && header(&answer, "retry-after")?.parse::<u64>()? <= 60 {
            continue;
        }
        if answer.status() != 200 {
            break answer;
        }
        served += 1;
        assert_eq!(header(&answer, "x-ratelimit-limit")?, "1000");
        let remaining: i64 = header(&answer, "x-ratelimit-remaining")?.parse()?;
        // As last heard: what the replica admits itself is heard later.
        assert!((0..1_000).contains(&remaining), "{remaining} after {served}");
    };
    assert_eq!((over.status().as_u16(), header(&over, "x-ratelimit-remaining")?), (429, "0"));
    assert_eq!(served, 1_000);
    metered.tracker.flush().await?;
    assert_eq!(guard.shutdown(std::time::Duration::from_secs(10)).await.forfeited_units, 0);
    assert_eq!(counted(&metered.db.pool, "eco_a").await?, each(1_000));
    assert_eq!(consumed(&metered.db.pool, "eco_a").await?, (1_000, 0), "each under its admission");
    let held = "select sum(booked_units)::bigint from eco_quota_leases where client_id is not null";
    let held: i64 = sqlx::query_scalar(held).fetch_one(&metered.db.pool).await?;
    assert!(held > 100, "{held} of 1,000 were admitted in this process");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_metering_is_away_calls_are_served_and_recorded_later() -> Result<()> {
    let metered = Metered::new(Plan::Free).await?;
    let url = serve(metered.layer()?).await?;
    let strict = serve(metered.layer()?.on_trouble(OnTrouble::Refuse)).await?;
    let mine = [("x-account", "eco_a")];
    assert_eq!(call(&strict, "/v1/things/1", &mine).await?.status(), 200);
    let Metered { db, server, tracker } = metered;
    let address = server.address;
    server.kill().await?;
    let served = call(&url, "/v1/things/1", &mine).await?;
    assert_eq!(served.status(), 200);
    assert!(served.headers().get("x-ratelimit-limit").is_none(), "what is not known is not told");
    let refused = call(&strict, "/v1/things/1", &mine).await?;
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")?), (503, "1"));
    let server = Server::start_at(address, db.args()).await?;
    tracker.flush().await?;
    assert_eq!(counted(&db.pool, "eco_a").await?, each(2), "our own 503 is not recorded");
    assert_eq!(consumed(&db.pool, "eco_a").await?, (1, 1));
    server.kill().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admission_of_envoy_is_passed_on_and_means_nothing_elsewhere() -> Result<()> {
    let metered = Metered::new(Plan::Free).await?;
    let behind_envoy = serve(metered.layer()?.behind_envoy()).await?;
    let alone = serve(metered.layer()?).await?;
    let nexus_client::guard::Decision::Admitted(all) = metered.server.guard()?.check("eco_a", 1_000).await?
    else {
        anyhow::bail!("a fresh account has 1,000 units");
    };
    let admitted = [("x-account", "eco_a"), ("x-units", "5"), ("x-nexus-admission", all.admission.as_str())];
    assert_eq!(call(&behind_envoy, "/v1/things/1", &admitted).await?.status(), 200);
    assert_eq!(call(&behind_envoy, "/v1/things/1", &[("x-account", "eco_a")]).await?.status(), 429);
    assert_eq!(call(&alone, "/v1/things/1", &admitted).await?.status(), 429, "a client cannot admit itself");
    // Envoy asked for several accounts: the admission of the one that is recorded is taken, whichever comes last.
    let (mine, other) =
        (format!("{};account=eco_a", all.admission), format!("{};account=eco_b", uuid::Uuid::nil()));
    let several = [("x-account", "eco_a"), ("x-nexus-admission", &*mine), ("x-nexus-admission", &*other)];
    assert_eq!(call(&behind_envoy, "/v1/things/1", &several).await?.status(), 200);
    let others = [("x-account", "eco_a"), ("x-nexus-admission", &*other)];
    assert_eq!(call(&behind_envoy, "/v1/things/1", &others).await?.status(), 429, "another's admits nobody");
    metered.tracker.flush().await?;
    assert_eq!(counted(&metered.db.pool, "eco_a").await?.units, 6);
    assert_eq!(consumed(&metered.db.pool, "eco_a").await?, (1_000, 0));
    Ok(())
}
