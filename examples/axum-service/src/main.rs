//! An axum service that meters itself: who calls is found out from the API key, the layer does the rest.

use std::{env, time::Duration};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use nexus_client::{CallOptions, Credentials, Guard, MeterLayer, Tracker, meter::Caller};
use nexus_proto::usage::v1::{VerifyApiKeyRequest, usage_service_client::UsageServiceClient};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tonic::{Code, transport::Channel};

#[derive(Clone)]
struct Keys {
    usage: UsageServiceClient<Channel>,
    options: CallOptions,
}

#[tokio::main]
async fn main() -> Result<()> {
    let address = env::var("NEXUS_USAGE_ADDR").context("NEXUS_USAGE_ADDR, e.g. http://localhost:50051")?;
    let token = env::var("NEXUS_TOKEN").context("NEXUS_TOKEN: a service token")?;
    let channel = nexus_client::channel(&address)?;

    let tracker = Tracker::builder(&address, Credentials::bearer(&token))
        .disk_buffer(env::temp_dir().join("example-axum-service.redb"), 64 * 1024 * 1024)
        .build()
        .await?;
    // Checks of busy accounts are decided in this process, from units that it holds.
    let guard = Guard::new(channel.clone(), Credentials::bearer(&token)).leased(256);
    let mut meter = MeterLayer::new(tracker.clone(), |parts| parts.extensions.get::<Caller>().cloned())
        .limit(guard.clone());
    if env::var_os("BEHIND_ENVOY").is_some() {
        meter = meter.behind_envoy();
    }
    let keys = Keys {
        usage: nexus_client::usage(channel),
        options: CallOptions::bearer(&token, Duration::from_secs(2))?,
    };
    let app = Router::new()
        .route("/v1/reports/{id}", get(report))
        .layer(meter)
        .layer(middleware::from_fn_with_state(keys, verify));

    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(stopped()?).await?;
    let deadline = Duration::from_secs(10);
    let (delivered, held) = tokio::join!(tracker.shutdown(deadline), guard.shutdown(deadline));
    println!("{}; {} units not given back", delivered.stats, held.forfeited_units);
    Ok(())
}

/// Returns on SIGTERM and on Ctrl-C: what the tracker and the guard hold is to be delivered and given back then.
fn stopped() -> Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

async fn report(Path(id): Path<u64>) -> String {
    format!("report {id}\n")
}

/// Lets in who shows a good API key, and says to the layer whose it is.
async fn verify(
    State(mut keys): State<Keys>,
    mut request: Request,
    next: Next,
) -> Result<Response, StatusCode> {
    let key = api_key(request.headers()).ok_or(StatusCode::UNAUTHORIZED)?;
    let question = keys.options.request(VerifyApiKeyRequest { key: key.to_owned() });
    let known = keys.usage.verify_api_key(question).await.map_err(|status| match status.code() {
        Code::Unauthenticated | Code::InvalidArgument => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    })?;
    let known = known.into_inner();
    request.extensions_mut().insert(Caller::new(known.eco_id).api_key(known.key_id, known.test_mode));
    Ok(next.run(request).await)
}

/// The key in `Authorization: ApiKey <key>` or `x-api-key: <key>`.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("ApiKey").then_some(key.trim_start())
}
