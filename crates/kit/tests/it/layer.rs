//! What happens around every RPC.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use http::uri::PathAndQuery;
use nexus_client::CallOptions;
use nexus_kit::{
    auth::{Scope, service_token},
    metrics::Metrics,
    serve::Listeners,
};
use nexus_proto::usage::v1::{CheckQuotaRequest, StreamUsageRequest};
use prost_types::Any;
use secrecy::SecretString;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, client::Grpc, service::Routes, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::server::{SERVICE_SECRET, server};

/// A server whose CheckQuota never answers, with 200 ms for every call.
async fn start() -> (Channel, Metrics, DropGuard) {
    let silent = axum::routing::post(std::future::pending::<()>);
    let mut routes = Routes::default();
    *routes.axum_router_mut() = std::mem::take(routes.axum_router_mut())
        .route("/nexus.usage.v1.UsageService/CheckQuota", silent)
        .route("/nexus.usage.v1.UsageService/RecordUsage", axum::routing::post(panics));
    let mut server = server(routes);
    server.args.request_timeout = Duration::from_millis(200);
    let any = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(any, any).await.expect("free ports");
    let address = format!("http://{}", listeners.main_addr().expect("bound"));
    let (metrics, stop) = (server.metrics.clone(), CancellationToken::new());
    tokio::spawn(server.serve(listeners, stop.clone()));
    (nexus_client::channel(&address).expect("an address"), metrics, stop.drop_guard())
}

async fn panics() {
    panic!("a handler's fault, in a test");
}

fn options() -> CallOptions {
    let soon = Utc::now() + TimeDelta::hours(1);
    let token =
        service_token(&SecretString::from(SERVICE_SECRET), "tests", &[Scope::Admin], soon).expect("a token");
    CallOptions::bearer(&token, Duration::from_secs(20)).expect("a header")
}

/// Calls any path with any message.
async fn call<M: prost::Message + Default + 'static>(
    channel: &Channel,
    path: &'static str,
    message: M,
) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("the server is there");
    let codec = ProstCodec::<M, Any>::default();
    let answer = client.unary(options().request(message), PathAndQuery::from_static(path), codec).await;
    answer.expect_err("a refusal")
}

fn code_and_reason(status: &Status) -> (Code, String) {
    (status.code(), nexus_kit::status::reason(status))
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_answered_with_deadline_exceeded() {
    let (channel, _metrics, _stop) = start().await;
    let request = options().request(CheckQuotaRequest::default());
    let status = nexus_client::usage(channel).check_quota(request).await.expect_err("late");
    assert_eq!(code_and_reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
}

#[tokio::test]
async fn a_handler_that_panics_is_an_internal_error_and_the_server_goes_on() {
    let (channel, _metrics, _stop) = start().await;
    for _ in 0..2 {
        let status = call(&channel, "/nexus.usage.v1.UsageService/RecordUsage", Any::default()).await;
        assert_eq!(code_and_reason(&status), (Code::Internal, "INTERNAL".into()));
    }
}

#[tokio::test]
async fn what_the_transport_refuses_has_a_reason_too() {
    let (channel, _metrics, _stop) = start().await;
    // A number where the service's name should be.
    let malformed = StreamUsageRequest { batch_id: 5, events: Vec::new() };
    let status = call(&channel, "/grpc.health.v1.Health/Check", malformed).await;
    assert_eq!(code_and_reason(&status), (Code::InvalidArgument, "MALFORMED_MESSAGE".into()));
    assert!(!status.message().contains("varint"), "{}", status.message());
    let status = call(&channel, "/nexus.usage.v1.UsageService/NoSuch", Any::default()).await;
    assert_eq!(code_and_reason(&status), (Code::Unimplemented, "UNIMPLEMENTED".into()));
    assert!(status.get_error_details().error_info().is_some_and(|i| i.domain == "nexus.metering"));
}

#[tokio::test]
async fn what_a_client_makes_up_is_no_label() {
    let (channel, metrics, _stop) = start().await;
    call(&channel, "/nexus.usage.v1.UsageService/MadeUp", Any::default()).await;
    call(&channel, "/nexus.madeup.Service/Method", Any::default()).await;
    let text = metrics.render();
    assert!(!text.contains("MadeUp") && !text.contains("madeup"), "{text}");
    assert!(text.contains("service=\"unknown\""), "{text}");
}
