//! What somebody who has shown nothing good may hold.

use anyhow::Result;
use nexus_core::plan::Plan;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{answer::Answer, suite::Suite, visitor::Visitor, webhooks::signed};

impl Suite {
    /// Begins to send a form, which never comes as a whole.
    async fn begin_form(&self, path: &str, address: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.gateway.trim_start_matches("http://")).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\nsec-fetch-site: same-origin\r\n\
             stripe-signature: t=1\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 10\r\n\r\nx="
        );
        stream.write_all(head.as_bytes()).await?;
        Ok(stream)
    }
}

async fn status(stream: &mut TcpStream) -> Result<String> {
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Strangers have two places, one an address, and those who send webhooks one.
async fn small() -> Result<Suite> {
    Suite::start_with(|config| {
        config.serve.max_in_flight = 8;
        config.trusted_proxies = "127.0.0.0/8".parse().expect("a network");
    })
    .await
}

#[tokio::test]
async fn forms_that_do_not_come_leave_places_to_who_is_known() -> Result<()> {
    let suite = small().await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    let mut held = Vec::new();
    for number in 0..2 {
        held.push(suite.begin_form("/sign-in", &format!("192.0.2.{number}")).await?);
        suite.in_flight(number + 1).await?;
    }
    for number in 2..8 {
        let mut refused = suite.begin_form("/sign-in", &format!("192.0.2.{number}")).await?;
        assert_eq!(status(&mut refused).await?, "HTTP/1.1 503");
    }
    // A key that is not known yet is a stranger's.
    let unknown = suite.get("/api/secure/ping", &key).await?;
    assert_eq!((unknown.status.as_u16(), unknown.number("retry-after")?), (503, 1));
    held.pop();
    suite
        .until(async |suite| suite.get("/api/secure/ping", &key).await, |answer| answer.status == 200)
        .await?;
    held.push(suite.begin_form("/sign-in", "192.0.2.9").await?);
    suite.in_flight(2).await?;
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    assert_eq!(suite.get_as("eco_a", "/api/usage/current").await?.status, 200);
    assert_eq!(Visitor::of(&suite, "eco_a")?.get("/dashboard").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn strangers_keep_out_neither_the_scheduler_nor_stripe_nor_probes() -> Result<()> {
    let suite = small().await?;
    let _held =
        [suite.begin_form("/sign-in", "192.0.2.1").await?, suite.begin_form("/sign-in", "192.0.2.2").await?];
    suite.in_flight(2).await?;
    assert_eq!(suite.get("/sign-in", "").await?.status, 503);
    assert_eq!(suite.run_overage().await?.status, 200);
    let event = r#"{"id": "evt_1", "object": "event", "type": "customer.tax_id.created",
                    "data": {"object": {"id": "txi_1"}}}"#;
    assert_eq!(Answer::of(signed(&suite, event)?).await?.status, 200);
    assert_eq!(suite.get("/healthz", "").await?.status, 200);
    suite.until(async |suite| suite.get("/readyz", "").await, |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn a_form_of_somebody_unknown_is_short() -> Result<()> {
    let suite = Suite::start().await?;
    let long = "x".repeat(16 * 1024);
    let refused = Visitor::new(&suite)?.post("/sign-in", &[("token", &long)]).await?;
    assert_eq!(refused.status, 413, "{}", refused.html);
    Ok(())
}
