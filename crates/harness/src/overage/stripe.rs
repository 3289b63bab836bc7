//! The stand-in Stripe of a seed, and what is asked of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, RequestBuilder};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Account, Poison};

/// A key that it takes.
pub(super) const KEY: &str = "sk_test_harness";
const CALLERS: u32 = 16;

pub(super) struct Stripe {
    url: String,
    client: Client,
    _stop: DropGuard,
}

/// An invoice item, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Item {
    pub(super) customer: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) metadata: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
struct State {
    invoiceitems: Vec<Item>,
}

#[derive(Deserialize)]
struct Made {
    id: String,
}

#[derive(Deserialize)]
struct Requests {
    requests: Vec<Logged>,
}

#[derive(Deserialize)]
struct Logged {
    at: i64,
}

/// Ends a task when it is dropped.
pub(super) struct Hurry(AbortHandle);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stripe {
    pub(super) async fn start() -> Result<Self> {
        // reqwest asks for a TLS provider, also where there is no TLS. It fails only where there is one already.
        drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));
        Ok(Self { url, client: Client::new(), _stop: stop.drop_guard() })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Makes customers.
    pub(super) async fn customers(&self, count: u32) -> Result<Vec<String>> {
        let left = Arc::new(AtomicU32::new(count));
        let mut makers = JoinSet::new();
        for _ in 0..CALLERS {
            let (left, client, url) =
                (left.clone(), self.client.clone(), format!("{}/v1/customers", self.url));
            makers.spawn(async move {
                let mut ids = Vec::new();
                while left
                    .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let form = [("email", "a@example.com")];
                    let made: Made = answer(client.post(&url).bearer_auth(KEY).form(&form)).await?;
                    ids.push(made.id);
                }
                anyhow::Ok(ids)
            });
        }
        let mut all = Vec::new();
        for ids in makers.join_all().await {
            all.extend(ids?);
        }
        Ok(all)
    }

    /// Has some of their customers be what they are to be.
    pub(super) async fn poison(&self, accounts: &[Account]) -> Result<()> {
        for account in accounts {
            let customer = &account.customer;
            match account.poison {
                None => {}
                Some(Poison::Declined) => {
                    self.admin(&format!("/customers/{customer}"), json!({ "declined": true })).await?;
                }
                Some(Poison::Deleted) => {
                    self.admin(&format!("/customers/{customer}"), json!({ "deleted": true })).await?;
                }
                // A customer is held to the currency of its first item.
                Some(Poison::Currency) => {
                    let form = [("customer", customer.as_str()), ("amount", "100"), ("currency", "eur")];
                    let call = self.client.post(format!("{}/v1/invoiceitems", self.url)).bearer_auth(KEY);
                    answer::<Made>(call.form(&form)).await?;
                }
            }
        }
        Ok(())
    }

    async fn admin(&self, path: &str, body: serde_json::Value) -> Result<serde_json::Value> {
        answer(self.client.post(format!("{}/_sim{path}", self.url)).json(&body)).await
    }

    /// Lets its clock run so many times as fast, until what is returned is dropped.
    pub(super) fn hurry(&self, speed: u32) -> Hurry {
        let (client, url) = (self.client.clone(), format!("{}/_sim/clock", self.url));
        let task = tokio::spawn(async move {
            // It goes a second a second by itself.
            let mut tick = interval(Duration::from_secs(1) / (speed - 1).max(1));
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            if speed < 2 {
                return;
            }
            loop {
                tick.tick().await;
                let advance = client.post(&url).json(&json!({ "advance_seconds": 1 }));
                if let Err(error) = answer::<serde_json::Value>(advance).await {
                    eprintln!("Stripe's clock stands still: {error:#}");
                    return;
                }
            }
        });
        Hurry(task.abort_handle())
    }

    /// All invoice items.
    pub(super) async fn items(&self) -> Result<Vec<Item>> {
        let state: State = answer(self.client.get(format!("{}/_sim/state", self.url))).await?;
        Ok(state.invoiceitems)
    }

    /// How many requests for items billing-svc has made, and in how many seconds of its clock.
    pub(super) async fn requests(&self) -> Result<(usize, i64)> {
        let url = format!("{}/_sim/requests?method=POST&path=/v1/invoiceitems", self.url);
        let log: Requests = answer(self.client.get(url)).await?;
        // Those of the preparations came before its clock was hurried.
        let first = log.requests.first().context("requests")?.at;
        let begun: Vec<i64> =
            log.requests.iter().map(|request| request.at).filter(|at| *at > first + 1).collect();
        let (first, last) = begun.first().zip(begun.last()).context("requests of billing-svc")?;
        Ok((begun.len(), last - first + 1))
    }
}

async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T> {
    let response = request.send().await?;
    let (status, url) = (response.status(), response.url().clone());
    let body = response.bytes().await?;
    ensure!(status.is_success(), "{url}: {status} {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}
