//! What somebody who has shown nothing good may hold.

use anyhow::Result;
use nexus_core::plan::Plan;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{suite::Suite, visitor::Visitor};

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

#[tokio::test]
async fn forms_that_do_not_come_leave_places_to_who_is_known() -> Result<()> {
    let suite = Suite::start_with(|config| {
        config.serve.max_in_flight = 8;
        config.trusted_proxies = "127.0.0.0/8".parse().expect("a network");
    })
    .await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    let mut held = Vec::new();
    for (number, path) in ["/sign-in", "/webhooks/stripe"].into_iter().enumerate() {
        held.push(suite.begin_form(path, &format!("192.0.2.{number}")).await?);
        suite.in_flight(number + 1).await?;
    }
    for number in 2..8 {
        let mut refused = suite.begin_form("/sign-in", &format!("192.0.2.{number}")).await?;
        assert_eq!(status(&mut refused).await?, "HTTP/1.1 503");
    }
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    assert_eq!(suite.get_as("eco_a", "/api/usage/current").await?.status, 200);
    assert_eq!(Visitor::of(&suite, "eco_a")?.get("/dashboard").await?.status, 200);
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
