//! A tonic service within the layer: the health service of tonic.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use nexus_client::{
    MeterLayer,
    meter::{Caller, OnTrouble},
};
use nexus_core::plan::Plan;
use nexus_testkit::{db::TestDb, settings::ANY_PORT};
use tokio::{net::TcpListener, task::yield_now};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Server as TonicServer, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::support::*;

fn caller(parts: &http::request::Parts) -> Option<Caller> {
    Some(Caller::new(parts.headers.get("x-account")?.to_str().ok()?).units(400))
}

async fn serve(layer: MeterLayer) -> Result<HealthClient<Channel>> {
    let (_, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind(ANY_PORT).await?;
    let address: SocketAddr = listener.local_addr()?;
    let server = TonicServer::builder().layer(layer).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Ok(HealthClient::new(nexus_client::channel(&format!("http://{address}"))?))
}

fn request(service: &str) -> Result<Request<HealthCheckRequest>> {
    let mut request = Request::new(HealthCheckRequest { service: service.to_owned() });
    request.metadata_mut().insert("x-account", "eco_a".parse()?);
    Ok(request)
}

async fn rows(db: &TestDb) -> Result<Vec<(String, String, i16, bool)>> {
    Ok(sqlx::query_as(
        "select endpoint, method, status_code, admission_id is not null from eco_api_usage order by 1, 3",
    )
    .fetch_all(&db.pool)
    .await?)
}

fn row(method: &str, status: i16) -> (String, String, i16, bool) {
    (format!("/grpc.health.v1.Health/{method}"), "GRPC".to_owned(), status, true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_recorded_by_method_with_the_status_that_ends_them() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Pro).await?;
    let server = Server::start(db.args()).await?;
    // With that, it gives back what it holds: what is consumed would be shown without it for a moment.
    hear(&db, 1).await?;
    let tracker = tracker(&server.url())?.build().await?;
    let mut client = serve(MeterLayer::new(tracker.clone(), caller).limit(server.guard()?)).await?;

    let answer = client.check(request("")?).await?;
    let remaining = answer.metadata().get("x-ratelimit-remaining").context("no headers")?;
    assert_eq!(remaining, "99600");
    let missing = client.check(request("nobody")?).await.expect_err("there is no such service");
    assert_eq!(missing.code(), Code::NotFound);
    let mut watch = client.watch(request("")?).await?.into_inner();
    let first: Option<HealthCheckResponse> = watch.message().await?;
    assert!(first.is_some());
    assert_eq!(tracker.stats().tracked, 2, "a stream is recorded when it ends");
    drop(watch);
    while tracker.stats().tracked < 3 {
        yield_now().await;
    }
    tracker.flush().await?;
    assert_eq!(rows(&db).await?, [row("Check", 200), row("Check", 404), row("Watch", 499)]);
    assert_eq!(server.consumed("eco_a").await?, 1_200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_over_the_limit_is_resource_exhausted_with_its_details() -> Result<()> {
    let db = TestDb::new().await?;
    account(&db, "eco_a", Plan::Free).await?;
    let server = Server::start(db.args()).await?;
    let tracker = tracker(&server.url())?.build().await?;
    let mut client = serve(MeterLayer::new(tracker.clone(), caller).limit(server.guard()?)).await?;
    client.check(request("")?).await?;
    client.check(request("")?).await?;
    let over = client.check(request("")?).await.expect_err("800 of 1,000 units are used");
    assert_eq!(over.code(), Code::ResourceExhausted);
    let details = over.get_error_details();
    assert!(details.quota_failure().is_some() && details.retry_info().is_some() && details.help().is_some());
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("QUOTA_EXCEEDED"));
    assert_eq!(over.metadata().get("x-ratelimit-remaining").context("no headers")?, "200");
    assert!(over.metadata().contains_key("retry-after"));
    tracker.flush().await?;
    assert_eq!(counted(&db.pool, "eco_a").await?, Counted { rows: 2, units: 800, daily: 800 });
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_metering_is_away_calls_are_served_or_unavailable_as_told() -> Result<()> {
    let url = format!("http://{}", nowhere()?);
    let tracker = tracker(&url)?.build().await?;
    let guard = nexus_client::Guard::new(nexus_client::channel(&url)?, credentials()?);
    let layer = MeterLayer::new(tracker.clone(), caller).limit(guard);
    let mut open = serve(layer.clone()).await?;
    open.check(request("")?).await?;
    let mut closed = serve(layer.on_trouble(OnTrouble::Refuse)).await?;
    let refused: Status = closed.check(request("")?).await.expect_err("it cannot be checked");
    assert_eq!(refused.code(), Code::Unavailable);
    let reason = refused.get_error_details().error_info().map(|info| info.reason.clone());
    assert_eq!(reason.as_deref(), Some("METERING_UNAVAILABLE"));
    assert_eq!(tracker.stats().tracked, 1);
    Ok(())
}
