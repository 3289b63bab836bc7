//! The stand-in Stripe of a seed, and what is asked of it.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, RequestBuilder};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A key that it takes.
pub(crate) const KEY: &str = "sk_test_harness";
const CALLERS: u32 = 16;

/// Rounds of webhooks before something is wrong.
const MAX_TELLS: u32 = 20;

/// A request that the faults do not strike: they are for billing-svc.
const SPARED: (&str, &str) = ("Sim-Fault", "{}");

#[derive(Clone)]
pub(crate) struct Stripe {
    url: String,
    client: Client,
    _stop: Arc<DropGuard>,
}

/// An invoice item, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) metadata: std::collections::HashMap<String, String>,
    /// Absent: it is pending.
    pub(crate) invoice: Option<String>,
}

#[derive(Deserialize)]
struct Invoice {
    id: String,
    status: String,
}

#[derive(Deserialize)]
struct State {
    invoiceitems: Vec<Item>,
    invoices: Vec<Invoice>,
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

/// What is wrong with a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Poison {
    Declined,
    Deleted,
    Currency,
}

impl Poison {
    /// As it is told of the account.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Declined => "CARD_DECLINED",
            Self::Deleted => "RESOURCE_MISSING",
            Self::Currency => "INVALID_REQUEST_ERROR",
        }
    }
}

/// Ends a task when it is dropped.
pub(crate) struct Hurry(AbortHandle);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stripe {
    pub(crate) async fn start() -> Result<Self> {
        // reqwest asks for a TLS provider, also where there is no TLS. It fails only where there is one already.
        drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        tokio::spawn(stripe_sim::serve(stripe_sim::Config::default(), listener, stop.clone()));
        Ok(Self { url, client: Client::new(), _stop: Arc::new(stop.drop_guard()) })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Makes customers.
    pub(crate) async fn customers(&self, count: u32) -> Result<Vec<String>> {
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

    /// Creates an object and returns its id.
    pub(crate) async fn create(&self, path: &str, form: &[(&str, &str)]) -> Result<String> {
        let call = self.client.post(format!("{}/v1/{path}", self.url)).bearer_auth(KEY);
        Ok(answer::<Made>(call.header(SPARED.0, SPARED.1).form(form)).await?.id)
    }

    /// Ends a subscription at once.
    pub(crate) async fn cancel(&self, subscription: &str) -> Result<()> {
        let call = self.client.delete(format!("{}/v1/subscriptions/{subscription}", self.url));
        answer::<Value>(call.bearer_auth(KEY).header(SPARED.0, SPARED.1)).await.map(drop)
    }

    /// Moves the time of a customer's own on.
    pub(crate) async fn advance_clock(&self, clock: &str, to: i64) -> Result<()> {
        let path = format!("test_helpers/test_clocks/{clock}/advance");
        self.create(&path, &[("frozen_time", &to.to_string())]).await.map(drop)
    }

    /// Has a customer be one that cannot be charged.
    pub(crate) async fn poison(&self, customer: &str, poison: Poison) -> Result<()> {
        let how = match poison {
            Poison::Declined => json!({ "declined": true }),
            Poison::Deleted => json!({ "deleted": true }),
            Poison::Currency => json!({ "currency": "eur" }),
        };
        self.admin(&format!("/customers/{customer}"), how).await.map(drop)
    }

    /// Has a customer be one that can be charged again.
    pub(crate) async fn mend(&self, customer: &str, poison: Poison) -> Result<()> {
        let how = match poison {
            Poison::Declined => json!({ "declined": false }),
            Poison::Deleted => anyhow::bail!("a customer that is deleted stays so"),
            Poison::Currency => json!({ "currency": "usd" }),
        };
        self.admin(&format!("/customers/{customer}"), how).await.map(drop)
    }

    /// Has events of these types sent to a URL.
    pub(crate) async fn tell(&self, url: &str, secret: &str, events: &[&str]) -> Result<()> {
        let endpoint = json!({ "url": url, "secret": secret, "enabled_events": events });
        self.admin("/webhooks", endpoint).await.map(drop)
    }

    /// Lets that share of events come twice, and late, by the seed.
    pub(crate) async fn tell_badly(&self, seed: u32, share: f64) -> Result<()> {
        let how = json!({ "seed": seed, "duplicate": share, "delay": share, "max_delay_seconds": 7_200 });
        self.admin("/webhooks/unreliable", how).await.map(drop)
    }

    /// Sends all events that are still to be sent, the second time too.
    pub(crate) async fn tell_all(&self) -> Result<()> {
        for _ in 0..MAX_TELLS {
            let sent = self.admin("/webhooks/send", json!({})).await?;
            if sent["undelivered"] == 0 {
                return Ok(());
            }
        }
        anyhow::bail!("an event is never taken")
    }

    /// Whether drafts of a subscription that was ended are finalised all the same.
    pub(crate) async fn finalise_after_end(&self, is_so: bool) -> Result<()> {
        let how = if is_so { "go_on" } else { "stop" };
        self.admin("/settings", json!({ "drafts_after_cancel": how })).await.map(drop)
    }

    /// Faults strike by the seed, as the stand-in has them.
    pub(crate) async fn chaos(&self, chaos: &Value) -> Result<()> {
        self.admin("/chaos", chaos.clone()).await.map(drop)
    }

    /// No request is struck any more, and all that were made have come to their end.
    pub(crate) async fn calm(&self) -> Result<()> {
        answer::<Value>(self.client.delete(format!("{}/_sim/chaos", self.url))).await?;
        self.idle().await
    }

    /// Returns once no request is under way, those included whose callers are gone.
    pub(crate) async fn idle(&self) -> Result<()> {
        answer::<Value>(self.client.get(format!("{}/_sim/idle", self.url))).await.map(drop)
    }

    /// Moves its clock on.
    pub(crate) async fn advance(&self, seconds: i64) -> Result<()> {
        self.admin("/clock", json!({ "advance_seconds": seconds })).await.map(drop)
    }

    async fn admin(&self, path: &str, body: Value) -> Result<Value> {
        answer(self.client.post(format!("{}/_sim{path}", self.url)).json(&body)).await
    }

    /// Lets its clock run so many times as fast, until what is returned is dropped.
    pub(crate) fn hurry(&self, speed: u32) -> Hurry {
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
                if let Err(error) = answer::<Value>(advance).await {
                    eprintln!("Stripe's clock stands still: {error:#}");
                    return;
                }
            }
        });
        Hurry(task.abort_handle())
    }

    /// All invoice items.
    pub(crate) async fn items(&self) -> Result<Vec<Item>> {
        Ok(self.state().await?.invoiceitems)
    }

    /// Those that are on no invoice, or on a draft.
    pub(crate) async fn open_items(&self) -> Result<Vec<Item>> {
        let State { invoiceitems, invoices } = self.state().await?;
        let drafts = invoices.into_iter().filter(|invoice| invoice.status == "draft");
        let drafts: HashSet<String> = drafts.map(|invoice| invoice.id).collect();
        let is_open = |item: &Item| item.invoice.as_ref().is_none_or(|invoice| drafts.contains(invoice));
        Ok(invoiceitems.into_iter().filter(is_open).collect())
    }

    async fn state(&self) -> Result<State> {
        answer(self.client.get(format!("{}/_sim/state", self.url))).await
    }

    /// How many requests for items billing-svc has made, and in how many seconds of its clock.
    pub(crate) async fn requests(&self) -> Result<(usize, i64)> {
        let url = format!("{}/_sim/requests?method=POST&path=/v1/invoiceitems", self.url);
        let log: Requests = answer(self.client.get(url)).await?;
        let (first, last) = log.requests.first().zip(log.requests.last()).context("requests")?;
        Ok((log.requests.len(), last.at - first.at + 1))
    }
}

async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T> {
    let response = request.send().await?;
    let (status, url) = (response.status(), response.url().clone());
    let body = response.bytes().await?;
    ensure!(status.is_success(), "{url}: {status} {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}
