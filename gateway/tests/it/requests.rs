//! What holds for every request: ids, unknown paths, wrong methods, bounds, metrics, the drain.

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    answer::{Answer, assert_answer},
    suite::{CRON_SECRET, Suite},
};

#[tokio::test]
async fn an_id_that_can_be_logged_is_kept_and_another_replaced() -> Result<()> {
    let suite = Suite::start().await?;
    let id_for = async |sent: &str| -> Result<String> {
        let answer = Answer::of(suite.request("GET", "/api/nothing")?.header("x-request-id", sent)).await?;
        answer.header("x-request-id").map(str::to_owned).context("an id")
    };
    assert_eq!(id_for("order-17.a:b_c").await?, "order-17.a:b_c");
    for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
        let made = id_for(bad).await?;
        assert_ne!(made, bad);
        assert!(made.parse::<uuid::Uuid>().is_ok(), "{made}");
    }
    assert_ne!(id_for("").await?, id_for("").await?);
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_404_and_a_wrong_method_405() -> Result<()> {
    let suite = Suite::start().await?;
    for path in ["/api", "/api/usage", "/api/usage/current/", "/api/usage/..%2fadmin", "/metrics"] {
        let answer = Answer::of(suite.request("GET", path)?).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["error"]), (404, &"Not found".into()), "{path}");
    }
    let routes = [
        ("/api/usage/current", "GET,HEAD"),
        ("/api/usage/history", "GET,HEAD"),
        ("/api/usage/endpoints", "GET,HEAD"),
        ("/api/usage/overage", "GET,HEAD"),
        ("/api/usage/spend-cap", "GET,HEAD,PUT"),
        ("/api/subscriptions/current", "GET,HEAD"),
        ("/api/subscriptions/checkout", "POST"),
        ("/api/subscriptions/cancel", "POST"),
        ("/api/subscriptions/reactivate", "POST"),
        ("/api/admin/analytics/overview", "GET,HEAD"),
        ("/api/admin/analytics/users", "GET,HEAD"),
        ("/api/keys/list", "GET,HEAD"),
        ("/api/keys/generate", "POST"),
        ("/api/keys/revoke", "POST"),
        ("/api/keys/rotate", "POST"),
        ("/api/secure/ping", "GET,HEAD"),
        ("/api/cron/process-overage", "POST"),
        ("/webhooks/stripe", "POST"),
    ];
    for (path, allowed) in routes {
        let answer = Answer::of(suite.request("DELETE", path)?).await?;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, Some(allowed)), "{path}");
    }
    assert_answer!(Answer::of(suite.request("GET", "/api/nothing")?).await?);
    assert_answer!(Answer::of(suite.request("GET", "/api/cron/process-overage")?).await?);
    Ok(())
}

#[tokio::test]
async fn bodies_and_headers_have_bounds() -> Result<()> {
    let suite = Suite::start().await?;
    let large = suite.request("POST", "/api/cron/process-overage")?.body(vec![b'x'; 1024 * 1024 + 1]);
    assert_answer!(Answer::of(large).await?);

    let address = suite.gateway.trim_start_matches("http://");
    // One whose length is not declared is counted as it comes.
    let token = nexus_testkit::settings::admin_token()?;
    for (path, token) in [("/api/keys/revoke", token.as_str()), ("/api/cron/process-overage", CRON_SECRET)] {
        let mut connection = TcpStream::connect(address).await?;
        let header = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             transfer-encoding: chunked\r\n\r\n8001\r\n"
        );
        connection.write_all(header.as_bytes()).await?;
        connection.write_all(&vec![b' '; 32 * 1024 + 1]).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            answer.push(connection.read_u8().await?);
        }
        let answer = String::from_utf8(answer)?;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\r\n\r\n{\"error\":"), "{answer}");
    }

    let mut connection = TcpStream::connect(address).await?;
    let header = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(64 * 1024));
    connection.write_all(header.as_bytes()).await?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"HTTP/1.1 431");
    Ok(())
}

/// Whoever connects and makes no request is not waited for.
#[tokio::test]
async fn a_connection_without_a_request_is_closed() -> Result<()> {
    let suite = Suite::start().await?;
    let address = suite.gateway.trim_start_matches("http://");
    // The second could yet become HTTP/2.
    let closed = ["", "PRI", "GET / HT"].map(|sent| async move {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(sent.as_bytes()).await?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await?;
        anyhow::Ok(())
    });
    futures::future::try_join_all(closed).await?;
    Ok(())
}

#[tokio::test]
async fn beyond_the_calls_in_flight_new_ones_are_put_off() -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", silent.local_addr()?);
    let suite = Suite::start_with(|config| {
        config.usage_addr = address;
        config.serve.max_in_flight = 1;
    })
    .await?;
    let waiting =
        suite.request("GET", "/api/usage/current")?.bearer_auth(nexus_testkit::settings::admin_token()?);
    let waiting = tokio::spawn(waiting.send());
    // The gateway is at work on the first once it has connected to the service.
    let _connection = silent.accept().await?;
    let answer = Answer::of(suite.request("GET", "/api/nothing")?).await?;
    assert_eq!((answer.status.as_u16(), answer.number("retry-after")?), (503, 1));
    waiting.abort();
    Ok(())
}

#[tokio::test]
async fn requests_are_counted_by_route_never_by_what_a_client_made_up() -> Result<()> {
    let suite = Suite::start().await?;
    Answer::of(suite.request("GET", "/api/made-up/42")?).await?;
    Answer::of(suite.request("GET", "/api/usage/history?days=3")?).await?;
    let metrics = reqwest::get(format!("{}/metrics", suite.operations)).await?.text().await?;
    for line in [
        r#"nexus_requests_total{service="http",method="unmatched",code="404"} 1"#,
        r#"nexus_requests_total{service="http",method="/api/usage/history",code="401"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(!metrics.contains("made-up"));
    Ok(())
}
