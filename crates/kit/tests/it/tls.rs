//! A server with a certificate, and clients that trust its issuer or do not.

use std::path::PathBuf;

use nexus_kit::{serve::Listeners, tls};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;
use tonic::{Code, service::Routes};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::server::server;

#[test]
fn what_does_not_fit_is_told_with_its_setting() {
    let with = |cert: &str, private: &str| {
        let mut args = nexus_testkit::settings::serve_args();
        (args.tls_cert, args.tls_key) = (Some(key(cert)), Some(key(private)));
        tls::server_config(&args).map(|config| config.is_some()).map_err(|e| e.to_string())
    };
    assert_eq!(with("server.pem", "server.key"), Ok(true));
    for (cert, private, setting) in [
        ("server.pem", "ec.pem", "TLS_KEY (--tls-key)"),
        ("server.pem", "server.pem", "TLS_KEY (--tls-key)"),
        ("server.key", "server.key", "TLS_CERT (--tls-cert)"),
        ("none.pem", "server.key", "TLS_CERT (--tls-cert)"),
    ] {
        assert!(with(cert, private).is_err_and(|e| e.starts_with(setting)), "{cert} {private}");
    }
    assert!(tls::server_config(&nexus_testkit::settings::serve_args()).is_ok_and(|none| none.is_none()));
}

/// Whoever connects and says nothing is not waited for.
#[tokio::test]
async fn a_handshake_that_does_not_come_ends_the_connection() {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(any, any).await.expect("free ports");
    let address = listeners.main_addr().expect("bound");
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut server = server(Routes::default());
    (server.args.tls_cert, server.args.tls_key) = (Some(key("server.pem")), Some(key("server.key")));
    tokio::spawn(server.serve(listeners, stop));
    let mut silent = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let ended = silent.read(&mut [0; 1]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

fn key(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/it/keys", name].iter().collect()
}

#[tokio::test]
async fn a_client_reaches_a_tls_server_whose_issuer_it_trusts_and_no_other() {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(any, any).await.expect("free ports");
    let port = listeners.main_addr().expect("bound").port();
    let stop = CancellationToken::new();
    let mut server = server(Routes::default());
    (server.args.tls_cert, server.args.tls_key) = (Some(key("server.pem")), Some(key("server.key")));
    let serving = tokio::spawn(server.serve(listeners, stop.clone()));

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
