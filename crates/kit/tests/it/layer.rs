//! What happens around every RPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use http::uri::PathAndQuery;
use nexus_client::CallOptions;
use nexus_core::id::{ApiKeyText, EcoId};
use nexus_kit::{
    auth::{Scope, VerifiedKey, service_token, user_token},
    metrics::Metrics,
    serve::{GrpcServer, Listeners},
    turn::Turns,
};
use nexus_proto::usage::v1::{CheckQuotaRequest, StreamUsageRequest};
use prost_types::Any;
use secrecy::SecretString;
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Status, client::Grpc, service::Routes, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::server::{SERVICE_SECRET, USER_SECRET, server};

const RECORD: &str = "/nexus.usage.v1.UsageService/RecordUsage";

/// A server whose CheckQuota never answers.
async fn start() -> (Channel, Metrics, DropGuard) {
    start_with(Duration::from_secs(60)).await
}

/// The same with so much time for every call.
async fn start_with(request_timeout: Duration) -> (Channel, Metrics, DropGuard) {
    let silent = axum::routing::post(std::future::pending::<()>);
    let mut routes = Routes::default();
    *routes.axum_router_mut() = std::mem::take(routes.axum_router_mut())
        .route("/nexus.usage.v1.UsageService/CheckQuota", silent)
        .route("/nexus.usage.v1.UsageService/RecordUsage", axum::routing::post(panics));
    let mut server = server(routes);
    server.args.request_timeout = request_timeout;
    serve(server).await
}

async fn serve(server: GrpcServer) -> (Channel, Metrics, DropGuard) {
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

fn user(eco_id: &str) -> CallOptions {
    hasty_user(eco_id, Duration::from_secs(60))
}

fn hasty_user(eco_id: &str, timeout: Duration) -> CallOptions {
    let (eco_id, soon) = (EcoId::parse(eco_id).expect("an id"), Utc::now() + TimeDelta::hours(1));
    let token =
        user_token(&SecretString::from(USER_SECRET), "nexus", None, &eco_id, None, soon).expect("a token");
    CallOptions::bearer(&token, timeout).expect("a header")
}

/// Returns once a condition holds that the server brings about.
async fn until(mut holds: impl FnMut() -> bool) {
    let holding = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holding).await.expect("it comes true");
}

/// Returns once so many calls are in flight.
async fn in_flight(metrics: &Metrics, calls: usize) {
    let value = format!(" {calls}");
    let says = |line: &str| line.starts_with("nexus_requests_in_flight") && line.ends_with(&value);
    until(|| metrics.render().lines().any(says)).await;
}

/// Calls any path with any message.
async fn call<M: prost::Message + Default + 'static>(
    channel: &Channel,
    path: &'static str,
    message: M,
) -> Status {
    call_as(&options(), channel, path, message).await
}

async fn call_as<M: prost::Message + Default + 'static>(
    options: &CallOptions,
    channel: &Channel,
    path: &'static str,
    message: M,
) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("the server is there");
    let codec = ProstCodec::<M, Any>::default();
    let answer = client.unary(options.request(message), PathAndQuery::from_static(path), codec).await;
    answer.expect_err("a refusal")
}

fn code_and_reason(status: &Status) -> (Code, String) {
    (status.code(), nexus_kit::status::reason(status))
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_answered_with_deadline_exceeded() {
    let (channel, _metrics, _stop) = start_with(Duration::from_millis(200)).await;
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

/// A connection that is too old takes no new calls; those it has are answered.
#[tokio::test]
async fn a_connections_age_cuts_no_call() {
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (begun.clone(), ended.clone());
    let slow = axum::routing::post(async move || {
        counts.0.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
        counts.1.fetch_add(1, Ordering::Relaxed);
    });
    let mut routes = Routes::default();
    *routes.axum_router_mut() = std::mem::take(routes.axum_router_mut()).route(RECORD, slow);
    let mut server = server(routes);
    // Nothing else is to cut them.
    server.args.request_timeout = Duration::from_secs(60);
    server.connection_age = Duration::from_millis(100);
    let (channel, _metrics, _stop) = serve(server).await;
    for _ in 0..60 {
        call(&channel, RECORD, Any::default()).await;
    }
    // One that meets the end of its connection may not be begun; its client is told so and may try again.
    let begun = begun.load(Ordering::Relaxed);
    assert!(begun > 0);
    assert_eq!(ended.load(Ordering::Relaxed), begun);
}

#[tokio::test]
async fn beyond_its_connections_a_server_accepts_the_next_when_one_has_ended() {
    let mut server = server(Routes::default());
    let places = Arc::new(Semaphore::new(1));
    server.connections = places.clone();
    let any = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(any, any).await.expect("free ports");
    let address = format!("http://{}", listeners.main_addr().expect("bound"));
    let operations = listeners.operations_addr().expect("bound");
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(server.serve(listeners, stop));
    let health = |channel: Channel| async move {
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.is_ok()
    };
    let first = nexus_client::channel(&address).expect("an address");
    assert!(health(first.clone()).await);
    assert_eq!(places.available_permits(), 0);
    let second = tokio::spawn(health(nexus_client::channel(&address).expect("an address")));
    // Who watches the server has a port of its own.
    let alive = nexus_testkit::http::client()
        .get(format!("http://{operations}/healthz"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(alive.status(), 200);
    assert!(health(first.clone()).await && !second.is_finished());
    drop(first);
    assert!(second.await.expect("no panic"));
}

/// Ten places, and none for whoever shows no credentials that hold.
#[tokio::test]
async fn callers_without_good_credentials_leave_the_places_to_the_others() {
    let mut routes = Routes::default();
    *routes.axum_router_mut() =
        std::mem::take(routes.axum_router_mut()).route(RECORD, axum::routing::post(panics));
    let mut server = server(routes);
    server.args.request_timeout = Duration::from_secs(60);
    let (channel, _metrics, _stop) = serve(server).await;

    let mut watches = Vec::new();
    for _ in 0..20 {
        let request = HealthCheckRequest { service: "some.Service".to_owned() };
        watches.push(HealthClient::new(channel.clone()).watch(request).await.expect("health is open"));
    }
    // Its message never comes; the key is refused without it.
    let key = format!("ApiKey eco_api_{}.{}", "a".repeat(22), "b".repeat(22));
    for _ in 0..20 {
        let mut request = Request::new(futures::stream::pending());
        request.metadata_mut().insert("authorization", key.parse().expect("a header"));
        let refused = nexus_client::usage(channel.clone()).stream_usage(request).await.expect_err("no key");
        assert_eq!(code_and_reason(&refused), (Code::Unauthenticated, "UNAUTHENTICATED".into()));
    }
    let status = call(&channel, RECORD, Any::default()).await;
    assert_eq!(status.code(), Code::Internal, "the handler was reached: {status:?}");
}

/// Ten places: two for each account.
#[tokio::test]
async fn an_account_that_holds_its_share_leaves_the_places_to_the_others() {
    let silent = axum::routing::post(std::future::pending::<()>);
    let mut routes = Routes::default();
    *routes.axum_router_mut() = std::mem::take(routes.axum_router_mut())
        .route("/nexus.usage.v1.UsageService/CheckQuota", silent)
        .route(RECORD, axum::routing::post(panics));
    let mut server = server(routes);
    server.args.request_timeout = Duration::from_secs(60);
    let (channel, metrics, _stop) = serve(server).await;
    let check = |options: CallOptions| {
        let mut client = nexus_client::usage(channel.clone());
        async move { client.check_quota(options.request(CheckQuotaRequest::default())).await }
    };
    let held = [(); 2].map(|()| tokio::spawn(check(user("eco_a"))));
    in_flight(&metrics, 2).await;
    let refused = check(user("eco_a")).await.expect_err("its share is held");
    assert_eq!(code_and_reason(&refused), (Code::Unavailable, "OVERLOADED".into()));
    for options in [user("eco_b"), options()] {
        let status = call_as(&options, &channel, RECORD, Any::default()).await;
        assert_eq!(status.code(), Code::Internal, "the handler was reached: {status:?}");
    }
    // A caller that goes away gives its place back.
    held.iter().for_each(|call| call.abort());
    let again = async {
        while call_as(&user("eco_a"), &channel, RECORD, Any::default()).await.code() != Code::Internal {}
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("it has its share again");
}

const ROTATE: &str = "/nexus.usage.v1.UsageService/RotateApiKey";

/// A server that holds rotations until they are released, with one of an account at work and two that wait. Its API
/// keys are of `eco_a`.
struct Rotations {
    channel: Channel,
    metrics: Metrics,
    begun: Arc<AtomicUsize>,
    released: Arc<Semaphore>,
    _stop: DropGuard,
}

impl Rotations {
    async fn start() -> Self {
        let (begun, released) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, gate) = (begun.clone(), released.clone());
        let held = axum::routing::post(move || {
            let (counted, gate) = (counted.clone(), gate.clone());
            async move {
                counted.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.expect("it is not closed").forget();
            }
        });
        let mut routes = Routes::default();
        *routes.axum_router_mut() = std::mem::take(routes.axum_router_mut())
            .route(ROTATE, held)
            .route(RECORD, axum::routing::post(panics));
        let mut server = server(routes);
        server.args.request_timeout = Duration::from_secs(60);
        server.args.max_in_flight = 40;
        server.turns = Turns::new(1, 2);
        server.api_keys = Some(Arc::new(|key: ApiKeyText| {
            let (key_id, eco_id) = (key.key_id().to_owned(), EcoId::parse("eco_a").expect("an id"));
            Box::pin(async move { Ok(VerifiedKey { key_id, eco_id, scopes: Vec::new(), test_mode: false }) })
        }));
        let (channel, metrics, stop) = serve(server).await;
        Self { channel, metrics, begun, released, _stop: stop }
    }

    /// One that is under way.
    fn rotate(&self, options: CallOptions) -> JoinHandle<Status> {
        let channel = self.channel.clone();
        tokio::spawn(async move { call_as(&options, &channel, ROTATE, Any::default()).await })
    }

    async fn begun(&self, calls: usize) {
        until(|| self.begun.load(Ordering::Relaxed) == calls).await;
    }
}

fn api_key() -> CallOptions {
    let key = format!("ApiKey eco_api_{}.{}", "a".repeat(22), "b".repeat(22));
    CallOptions::new(&key, Duration::from_secs(60)).expect("a header")
}

#[tokio::test]
async fn of_an_account_one_call_is_at_work_and_the_others_wait_without_holding_anybody_up() {
    let server = Rotations::start().await;
    let first = server.rotate(user("eco_a"));
    server.begun(1).await;
    let others = [server.rotate(user("eco_a")), server.rotate(user("eco_a"))];
    in_flight(&server.metrics, 3).await;
    let refused = server.rotate(user("eco_a")).await.expect("no panic");
    assert_eq!(code_and_reason(&refused), (Code::Unavailable, "OVERLOADED".into()));
    // What takes no connection of its own is not held up, and neither are others.
    for options in [user("eco_a"), api_key()] {
        let status = call_as(&options, &server.channel, RECORD, Any::default()).await;
        assert_eq!(status.code(), Code::Internal, "the handler was reached: {status:?}");
    }
    // Nor has an account's key anything of its users'.
    let of_others = [
        server.rotate(user("eco_b")),
        server.rotate(options()),
        server.rotate(options()),
        server.rotate(api_key()),
    ];
    server.begun(5).await;
    server.released.add_permits(7);
    for call in [first].into_iter().chain(others).chain(of_others) {
        let status = call.await.expect("no panic");
        assert_ne!(status.code(), Code::Unavailable, "{status:?}");
    }
    server.begun(7).await;
}

/// What it began may go on in the database, with a connection, until its wait for a lock is given up.
#[tokio::test]
async fn a_call_keeps_its_turn_for_a_while_though_its_caller_goes_away() {
    let server = Rotations::start().await;
    let gone = server.rotate(user("eco_a"));
    server.begun(1).await;
    gone.abort();
    in_flight(&server.metrics, 0).await;
    // Neither does it have the turn whose time is over while it waits.
    server.rotate(hasty_user("eco_a", Duration::from_millis(100))).await.expect("no panic");
    in_flight(&server.metrics, 0).await;
    assert_eq!(server.begun.load(Ordering::Relaxed), 1);
    let next = server.rotate(user("eco_a"));
    in_flight(&server.metrics, 1).await;
    assert_eq!(server.begun.load(Ordering::Relaxed), 1);
    server.released.add_permits(2);
    next.await.expect("no panic");
    assert_eq!(server.begun.load(Ordering::Relaxed), 2);
}

/// The panic is in a task of its own there.
#[tokio::test]
async fn a_handler_that_panics_in_its_turn_is_an_internal_error_and_gives_the_turn_back() {
    let mut routes = Routes::default();
    *routes.axum_router_mut() =
        std::mem::take(routes.axum_router_mut()).route(ROTATE, axum::routing::post(panics));
    let mut server = server(routes);
    server.turns = Turns::new(1, 1);
    let (channel, _metrics, _stop) = serve(server).await;
    for _ in 0..2 {
        let status = call_as(&user("eco_a"), &channel, ROTATE, Any::default()).await;
        assert_eq!(code_and_reason(&status), (Code::Internal, "INTERNAL".into()));
    }
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
