//! Answers that are not taken: what is made for them is bounded, and holds up nobody else.

use anyhow::Result;
use axum::body::Bytes;
use http_body_util::Empty;
use hyper::{Request, Response, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nexus_core::plan::Plan;
use nexus_testkit::settings::user_token;
use tokio::net::TcpStream;

use crate::suite::Suite;

const EXPORT: &str = "/api/usage/export?start=2026-11-01&end=2026-11-30";

/// Somebody who has no room for any answer.
struct Hoarder<'s> {
    suite: &'s Suite,
    client: http2::SendRequest<Empty<Bytes>>,
}

impl<'s> Hoarder<'s> {
    async fn new(suite: &'s Suite) -> Result<Self> {
        let stream = TcpStream::connect(suite.gateway.trim_start_matches("http://")).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (client, connection) =
            builder.initial_stream_window_size(0).handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { suite, client })
    }

    /// The head of an answer, whose body waits as long as this is kept.
    async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Response<Incoming>> {
        let request = Request::get(format!("{}{path}", self.suite.gateway));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Ok(self.client.send_request(request.body(Empty::new())?).await?)
    }
}

#[tokio::test]
async fn an_account_that_does_not_take_its_exports_has_no_more_of_them() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let mut hoarder = Hoarder::new(&suite).await?;
    let bearer = format!("Bearer {}", user_token("eco_a")?);
    let a = [("authorization", bearer.as_str())];
    let untaken = [hoarder.get(EXPORT, &a).await?, hoarder.get(EXPORT, &a).await?];
    assert!(untaken.iter().all(|answer| answer.status() == 200));
    let refused = suite.get_as("eco_a", EXPORT).await?;
    assert_eq!((refused.status.as_u16(), refused.number("retry-after")?), (503, 1), "{refused:?}");
    assert_eq!(suite.get_as("eco_a", "/api/usage/history").await?.status, 200);
    assert_eq!(suite.request("GET", EXPORT)?.bearer_auth(user_token("eco_b")?).send().await?.status(), 200);
    drop((untaken, hoarder));
    let served = async {
        while suite.request("GET", EXPORT)?.bearer_auth(user_token("eco_a")?).send().await?.status() != 200 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), served).await?
}

/// Each has more rows than lies between a service and who does not read.
#[tokio::test]
async fn exports_that_are_not_taken_hold_up_no_other_accounts() -> Result<()> {
    let suite = Suite::start().await?;
    let accounts = ["eco_a", "eco_b", "eco_c", "eco_d"];
    for eco_id in accounts {
        suite.account(eco_id, Plan::Pro).await?;
    }
    sqlx::query("select nexus_ensure_usage_partitions(current_date - 3, current_date)")
        .execute(&suite.db.pool)
        .await?;
    let many = "insert into eco_usage_hourly
                select a, date_trunc('hour', now()) - make_interval(hours => h), '/' || repeat('x', 250) || r, 'GET', 2, 1, 1, 1, '{}'
                from unnest($1::text[]) a, generate_series(1, 10) h, generate_series(1, 1000) r";
    sqlx::query(many).bind(accounts.as_slice()).execute(&suite.db.pool).await?;
    let today = chrono::Utc::now().date_naive();
    let day = chrono::TimeDelta::days(1);
    let path = format!("/api/usage/export?start={}&end={}", today - day * 2, today + day);
    let mut hoarder = Hoarder::new(&suite).await?;
    let mut untaken = Vec::new();
    for eco_id in accounts.iter().take(3).cycle().take(6) {
        let bearer = format!("Bearer {}", user_token(eco_id)?);
        untaken.push(hoarder.get(&path, &[("authorization", &bearer)]).await?);
    }
    assert!(untaken.iter().all(|answer| answer.status() == 200));
    let whole = suite.request("GET", &path)?.bearer_auth(user_token("eco_d")?).send().await?.text().await?;
    assert_eq!(whole.lines().count(), 10_001);
    Ok(())
}

#[tokio::test]
async fn long_answers_that_strangers_do_not_take_leave_places_to_who_is_known() -> Result<()> {
    let suite = Suite::start_with(|config| {
        config.serve.max_in_flight = 8;
        config.trusted_proxies = "127.0.0.0/8".parse().expect("a network");
    })
    .await?;
    suite.account("eco_a", Plan::Pro).await?;
    let key = suite.api_key("eco_a", false).await?;
    let mut hoarder = Hoarder::new(&suite).await?;
    let mut untaken = Vec::new();
    // Two places are strangers', and one of these an address's.
    for (address, status) in [("192.0.2.1", 200), ("192.0.2.1", 503), ("192.0.2.2", 200), ("192.0.2.3", 503)]
    {
        let answer = hoarder.get("/sign-in", &[("x-forwarded-for", address)]).await?;
        assert_eq!(answer.status(), status, "{address}");
        untaken.push(answer);
    }
    assert_eq!(suite.get_as("eco_a", "/api/usage/current").await?.status, 200);
    untaken.clear();
    suite
        .until(async |suite| suite.get("/api/secure/ping", &key).await, |answer| answer.status == 200)
        .await?;
    // What is told to who has nothing good takes no place.
    let made_up = format!("ApiKey eco_api_{}.{}", "0".repeat(22), "0".repeat(22));
    for (path, authorization) in
        [("/api/secure/ping", made_up.as_str()), ("/api/usage/current", ""), ("/", "")]
    {
        for _ in 0..8 {
            let answer = hoarder.get(path, &[("authorization", authorization)]).await?;
            assert!([200, 303, 401].contains(&answer.status().as_u16()), "{path}: {}", answer.status());
            untaken.push(answer);
        }
    }
    // One account has two places by its users and two by its keys, whatever it does.
    for _ in 0..4 {
        let bearer = format!("Bearer {}", user_token("eco_b")?);
        untaken.push(hoarder.get("/openapi.json", &[("authorization", &bearer)]).await?);
    }
    assert_eq!(suite.get_as("eco_a", "/api/usage/current").await?.status, 200);
    Ok(())
}
