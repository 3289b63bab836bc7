//! What one account's users cannot take from the others.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use nexus_core::plan::Plan;
use nexus_testkit::settings::user_token;
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};

use crate::{answer::Answer, suite::Suite};

const CURRENT: &str = "/api/usage/current";
const PING: &str = "/api/secure/ping";
/// Longest time that something may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests that the users of one account may have in flight.
const SHARE: usize = 256;

impl Suite {
    /// Returns once so many requests, at least, are in flight.
    pub(crate) async fn in_flight(&self, requests: usize) -> Result<()> {
        let arrive = async {
            loop {
                let metrics = self.metrics().await?;
                let now = metrics.lines().find_map(|line| line.strip_prefix("nexus_requests_in_flight "));
                if now.context("the metric")?.parse::<usize>()? >= requests {
                    return anyhow::Ok(());
                }
            }
        };
        timeout(PATIENCE, arrive).await.context("they do not arrive")?
    }

    async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("{}/metrics", self.operations)).await?.text().await?)
    }

    /// Returns once a session waits for a row's lock behind another that waits.
    async fn two_wait(&self) -> Result<()> {
        let query = "select count(*) >= 2 from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock'";
        let wait = async {
            while !sqlx::query_scalar::<_, bool>(query).fetch_one(&self.db.pool).await? {}
            anyhow::Ok(())
        };
        timeout(PATIENCE, wait).await.context("they do not wait")?
    }
}

#[tokio::test]
async fn rotations_that_wait_for_one_key_hold_up_no_metered_call() -> Result<()> {
    let suite = Suite::start_with(|config| config.backend_timeout = Duration::from_secs(30)).await?;
    suite.account("eco_a", Plan::Pro).await?;
    suite.account("eco_b", Plan::Pro).await?;
    let key = suite.api_key("eco_b", false).await?;
    let mine = suite.api_key("eco_a", false).await?;
    let id = mine.trim_start_matches("ApiKey ").split('.').next().context("an id")?;
    let mut holder = nexus_kit::db::begin(&suite.db.pool).await?;
    sqlx::query("select from eco_api_keys where key_id = $1 for update")
        .bind(id)
        .execute(&mut *holder)
        .await?;
    let body = json!({"key_id": id});
    let rotations = join_all((0..100).map(|_| suite.post_as("eco_a", "/api/keys/rotate", &body)));
    let others = async {
        suite.in_flight(50).await?;
        suite.two_wait().await?;
        let answer = suite.get(PING, &key).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = suite.get_as("eco_b", CURRENT).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["api_calls"]), (200, &json!(1)), "{answer:?}");
        anyhow::Ok(())
    };
    tokio::select! {
        early = rotations => anyhow::bail!("their key is locked: {early:?}"),
        others = others => others?,
    }
    Ok(())
}

/// A usage-svc that takes requests and never answers.
pub(crate) async fn silent() -> Result<(TcpListener, String)> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", silent.local_addr()?);
    Ok((silent, address))
}

#[tokio::test]
async fn an_account_whose_users_have_their_share_leaves_the_rest_to_others() -> Result<()> {
    let (_silent, address) = silent().await?;
    let suite = Suite::start_with(|config| {
        config.usage_addr = address;
        config.backend_timeout = Duration::from_secs(30);
        // One address has fewer connections.
        config.trusted_proxies = "127.0.0.0/8".parse().expect("a network");
    })
    .await?;
    suite.account("eco_b", Plan::Pro).await?;
    let waiting = join_all((0..SHARE).map(|_| suite.get_as("eco_a", CURRENT)));
    let others = async {
        suite.in_flight(SHARE).await?;
        let refused = suite.get_as("eco_a", "/api/usage/history").await?;
        assert_eq!((refused.status.as_u16(), refused.number("retry-after")?), (503, 1), "{refused:?}");
        let served = suite.get_as("eco_b", "/api/usage/history").await?;
        assert_eq!(served.status, 200, "{served:?}");
        anyhow::Ok(())
    };
    tokio::select! {
        early = waiting => anyhow::bail!("nobody answers these: {early:?}"),
        others = others => others?,
    }
    Ok(())
}

/// So that calls of users, which a connection takes a certain number of, hold up no metered one.
#[tokio::test]
async fn metered_calls_have_another_connection_than_users() -> Result<()> {
    let (silent, address) = silent().await?;
    let suite = Suite::start_with(|config| config.usage_addr = address).await?;
    let user = suite.request("GET", CURRENT)?.bearer_auth(user_token("eco_a")?);
    let user = tokio::spawn(Answer::of(user));
    let _of_users = timeout(PATIENCE, silent.accept()).await.context("a connection")??;
    let key = format!("ApiKey eco_api_{}.{}", "0".repeat(22), "0".repeat(22));
    let metered = tokio::spawn(Answer::of(suite.request("GET", PING)?.header("authorization", key)));
    let _of_metered = timeout(PATIENCE, silent.accept()).await.context("another connection")??;
    user.abort();
    metered.abort();
    Ok(())
}
