//! A server with a certificate, and clients that trust its issuer or do not.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nexus_kit::{
    auth::Authenticator,
    config::{AuthArgs, ServeArgs},
    metrics::Metrics,
    serve::{GrpcServer, Listeners},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, service::Routes};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

fn key(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/it/keys", name].iter().collect()
}

fn server() -> GrpcServer {
    let auth = AuthArgs {
        jwt_secret: Some("the-secret-of-users-0123456789-abcdef".into()),
        jwt_issuer: "nexus".into(),
        jwt_jwks: None,
        jwt_public_key: None,
        admin_eco_ids: String::new(),
        service_token_secret: "the-secret-of-services-0123456789-abcdef".into(),
        open_reflection: true,
        open_health: true,
    };
    GrpcServer {
        routes: Routes::default(),
        services: &["some.Service"],
        auth: Arc::new(Authenticator::new(&auth).expect("good settings")),
        metrics: Metrics::new(),
        args: ServeArgs {
            shutdown_grace: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            max_in_flight: 10,
            tls_cert: Some(key("server.pem")),
            tls_key: Some(key("server.key")),
        },
        readiness: Arc::new(|| Box::pin(async { Ok(()) })),
    }
}

#[tokio::test]
async fn a_client_reaches_a_tls_server_whose_issuer_it_trusts_and_no_other() {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(any, any).await.expect("free ports");
    let port = listeners.main_addr().expect("bound").port();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server().serve(listeners, stop.clone()));

    let check = |address: String, ca: Option<PathBuf>| async move {
        let channel = nexus_client::trusting_channel(&address, ca.as_deref()).expect("a good address");
        let request = HealthCheckRequest { service: "grpc.health.v1.Health".into() };
        HealthClient::new(channel).check(request).await.map(|_| ()).map_err(|status| status.code())
    };
    let https = format!("https://localhost:{port}");
    // The health service does not list itself: NOT_FOUND is its answer, over TLS.
    assert_eq!(check(https.clone(), Some(key("ca.pem"))).await, Err(Code::NotFound));
    assert_eq!(check(https.clone(), Some(key("other-ca.pem"))).await, Err(Code::Unavailable));
    assert_ne!(check(format!("http://localhost:{port}"), None).await, Err(Code::NotFound), "without TLS");
    let refused = nexus_client::channel(&https).map(|_| ()).map_err(|e| e.to_string());
    assert!(refused.is_err_and(|message| message.contains("TLS_CA")));

    stop.cancel();
    serving.await.expect("no panic").expect("a clean end");
}
